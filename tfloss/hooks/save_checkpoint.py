"""Saves checkpoints while training, and keeps the last few and the best.

    Evaluate(test_set, {"accuracy": accuracy}, every=Every(epochs=1)),
    SaveCheckpoint(every=Every(epochs=1), keep_last=3, keep_best=1, metric="val/accuracy")

Put it last but for the writers, since a checkpoint holds the state of every hook.
"""

import functools
import json
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tfloss.checkpoint.ranking import Ranking, ranking_of_state
from tfloss.errors import (
    Aborted,
    CheckpointError,
    CheckpointWriteError,
    DataError,
    Preempted,
    WorkerError,
)
from tfloss.hooks._watch import Watch
from tfloss.hooks.base import Hook
from tfloss.hooks.every import Every, OnSteps, check_trigger

if TYPE_CHECKING:
    from tfloss.checkpoint import BackgroundWriter, CheckpointDirectory


class SaveCheckpoint(Hook):
    """Saves when due and at a clean end, then deletes what need not be kept. Host.

    Put it after the hooks whose state matters, Evaluate above all: a checkpoint holds the
    state of every hook at the moment it is saved. If a hook changed its state after the
    last one (a final evaluation), the end saves again at the same step.

    A clean end is one without an error, the data running out, Ctrl-C and SIGTERM. After any other
    error (a loss that is not finite) the last checkpoint saved before stays the last.

    `keep_best` ranks the checkpoints at whose own step the metric was logged, so evaluate
    at the same `every`. The state is this ranking.

    Damaged checkpoints count as none, and are never deleted.

    Args:
      every: when; None: only at the end.
      keep_last: how many of the newest stay; None: all.
      keep_best: how many of the best stay beside them.
      metric: as it is logged, "val/accuracy"; needed by keep_best.
      mode: "max" if more is better, "min" if less is. By default "min" for what is logged
        under `losses/` (`losses/total`, `val/losses/kl`), else "max".
      keep_every: a checkpoint at a multiple of so many steps stays for ever.
      on_error: what happens when the disk doesn't take a checkpoint. "stop" ends training with
        CheckpointWriteError. "continue" warns, tries again when next due, and at the end says if
        the last one is missing.
    """

    time_bucket = "checkpoint"
    async_logs = True  # what it looks at is logged before it is due

    def __init__(
        self,
        every: Every | OnSteps | None = None,
        *,
        keep_last: int | None = 3,
        keep_best: int = 0,
        metric: str | None = None,
        mode: str | None = None,
        keep_every: int | None = None,
        on_error: str = "stop",
    ):
        check_trigger(every, "SaveCheckpoint")
        if keep_last is not None and keep_last < 1:
            raise ValueError(
                f"SaveCheckpoint(keep_last={keep_last}): it must be at least 1, or None for all."
            )
        if keep_best < 0:
            raise ValueError(f"SaveCheckpoint(keep_best={keep_best}): it must be at least 0.")
        if bool(keep_best) != (metric is not None):
            raise ValueError(
                "SaveCheckpoint: keep_best and metric go together, as in "
                "SaveCheckpoint(..., keep_best=1, metric='val/accuracy')."
            )
        if keep_every is not None and keep_every < 1:
            raise ValueError(f"SaveCheckpoint(keep_every={keep_every}): it must be at least 1.")
        if on_error not in ("stop", "continue"):
            raise ValueError(
                f"SaveCheckpoint(on_error={on_error!r}): it must be 'stop' or 'continue'."
            )
        self.every = every
        self.keep_last = keep_last
        self.keep_best = keep_best
        self.keep_every = keep_every
        self.on_error = on_error
        self._watch = Watch("SaveCheckpoint", metric, mode) if metric is not None else None
        self._value: tuple[int, float] | None = None  # the metric as last logged, and where
        self._saved: tuple[int, str] | None = None  # the last checkpoint, and all hooks' state
        self._failure: Exception | None = None  # of the last one, until another is saved
        self._ranking: Ranking | None = None  # the best, of those that are on the disk
        self._pending: Ranking | None = None  # the same, with the one that is being written
        self._ending = False

    def before_train(self) -> None:
        self._directory()  # fails now rather than at the first checkpoint
        self._value = self._failure = self._pending = None
        start = self.trainer.run.start
        there = start in self._directory().steps()  # the one that the run goes on from
        self._saved = (start, self._states()) if there else None
        self._ranking, self._ending = ranking_of_state(self.state), False
        if self._watch is not None:
            self._watch.start()

    def on_log(self, step, scalars, summaries) -> None:
        value = self._watch.value(step, scalars) if self._watch is not None else None
        if value is not None:
            self._value = (step, value)

    def after_step(self, step: int) -> None:
        if step < self.trainer.run.steps:  # else the end saves, with what else is found there
            self._save(step)

    def _save(self, step: int) -> None:
        self._finish_write()
        self._rank(step)
        if not self._attempt(self.trainer.save_checkpoint):
            return
        self._saved = (step, self._states())
        ranking = ranking_of_state(self.state)
        best = ranking.steps if ranking is not None else set[int]()
        delete = functools.partial(self._delete_others, best)
        if self._writer is None:
            self._ranking = ranking
            delete()
        else:
            self._pending = ranking
            self._writer.then(delete)

    def after_train(self) -> None:
        step, error = self.trainer.step, self.trainer.error
        ended = error is None or isinstance(error, DataError | KeyboardInterrupt | Preempted)
        clean = ended and not isinstance(error, Aborted)
        self._ending = True
        if clean and (step > self.trainer.run.start or self._saved is not None):
            self._finish_write()
            self._rank(step)
            # Together: reading the variables takes all workers.
            changed = self._saved != (step, self._states())
            if self.trainer.agreement.agree([changed])[0][0]:
                self._save(step)
            self._finish_write()
            if self._failure is not None:
                warnings.warn(
                    f"Training ended without a checkpoint of step {step}. {self._failure}",
                    stacklevel=2,
                )
        elif self._writer is not None:  # the other workers may be gone
            try:
                self._writer.wait()
            except Exception as failure:  # noqa: BLE001 - training ends with its own error
                warnings.warn(str(failure), stacklevel=2)
        if self._watch is not None:
            self._watch.finish(error)
            if self._value is not None and not self.state.get("best"):
                warnings.warn(
                    f"SaveCheckpoint(keep_best={self.keep_best}) kept nothing: no checkpoint was "
                    f"saved at a step where {self._watch.metric!r} was logged as a finite number. "
                    "Give SaveCheckpoint the same every as Evaluate, after it in the list.",
                    stacklevel=2,
                )

    @property
    def _writer(self) -> "BackgroundWriter | None":
        return self.trainer.writer

    def _finish_write(self) -> None:
        """Waits, on all workers, for what is written in the background."""
        writer, run_on_all = self._writer, self.trainer.agreement.run_on_all
        if writer is None:
            return
        if not self._attempt(lambda: run_on_all("write a checkpoint", writer.wait)):
            self._saved = None  # so the end saves again
        elif self._pending is not None:
            self._ranking = self._pending
        self._pending = None

    def _attempt(self, save: Callable[[], Any]) -> bool:
        """Whether all workers could do it. If the disk is at fault, `on_error` decides."""
        try:
            save()
        except (CheckpointError, OSError, WorkerError) as error:
            if self._watch is not None:
                before = self._ranking or Ranking(self._watch.metric)
                self.state.update(before.to_state())
            fatal = not isinstance(error, CheckpointWriteError | WorkerError)
            # What ended training is not to be hidden; the end says what is missing.
            stop = self.on_error == "stop" and self.trainer.error is None
            if self.trainer.agreement.agree([fatal or stop])[0][0]:
                raise
            self._failure = error
            if not self._ending:
                warnings.warn(
                    f"{error} Training goes on, and tries again when the next one is due.",
                    stacklevel=3,
                )
            return False
        self._failure = None
        return True

    def _rank(self, step: int) -> None:
        """Enters the checkpoint of `step` among the best, before it is saved with the state."""
        watch = self._watch
        if watch is None:
            return
        directory, before = self._directory(), ranking_of_state(self.state)
        # The ranking by another metric is of no use.
        best = list(before.best) if before is not None and before.metric == watch.metric else []
        # Looking into the files is for one worker; it is also the one whose state is saved.
        found = directory.valid_steps() if self.trainer.agreement.chief else directory.steps()
        there = {*found, step}
        best = [entry for entry in best if entry[1] in there]
        if (
            self._value is not None
            and self._value[0] == step
            and watch.better(self._value[1], None)
        ):
            best = [entry for entry in best if entry[1] != step] + [(self._value[1], step)]
        # The sort is stable: of equals, the earlier stays.
        best.sort(key=lambda entry: -entry[0] if watch.mode == "max" else entry[0])
        self.state.update(Ranking(watch.metric, tuple(best[: self.keep_best])).to_state())

    def _delete_others(self, best: set[int]) -> None:
        """Deletes what need not be kept, maybe in the background. Damaged ones don't count."""
        if self.keep_last is None or not self.trainer.agreement.chief:
            return
        directory = self._directory()
        for step in directory.valid_steps()[: -self.keep_last]:
            if step in best or (self.keep_every and step % self.keep_every == 0):
                continue
            try:
                directory.delete(step)
            except OSError as error:
                warnings.warn(
                    f"The checkpoint of step {step} can't be deleted: {error}", stacklevel=2
                )

    def _directory(self) -> "CheckpointDirectory":
        if self.trainer.checkpoints is None:
            raise ValueError(
                "SaveCheckpoint has nowhere to write: give the Trainer a workdir, or leave "
                "this hook out."
            )
        return self.trainer.checkpoints

    def _states(self) -> str:
        """All that a save at the same step would change."""
        states = [hook.state for hook in self.trainer.hooks]
        return json.dumps([states, bool(self.trainer.window)], sort_keys=True)
