"""Saves checkpoints during training, and keeps the newest and the best ones.

    Evaluate(test_set, {"accuracy": accuracy}, every=Every(epochs=1)),
    SaveCheckpoint(every=Every(epochs=1), keep_last=3, keep_best=1, metric="val/accuracy")

It is called after all other hooks, wherever it stands in the list, because a checkpoint stores the
state of every hook.
"""

import functools
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from tfloss.checkpoint.background import BackgroundWriter
from tfloss.checkpoint.directory import CheckpointDirectory
from tfloss.checkpoint.json_codec import encode
from tfloss.checkpoint.ranking import Ranking, ranking_of_state
from tfloss.errors import (
    Aborted,
    CheckpointError,
    CheckpointWriteError,
    DataError,
    Preempted,
    WorkerError,
)
from tfloss.evaluation.metrics import Mode
from tfloss.hooks.every import Every, OnSteps, check_trigger
from tfloss.hooks.monitored_metric import MonitoredMetric, MonitoringHook
from tfloss.summary import Summary


class SaveCheckpoint(MonitoringHook, own=True):
    """Saves when due and at a clean end, then deletes old checkpoints. Host.

    At each step and at the end of training, it is called after all other hooks, wherever it stands
    in the list. So a checkpoint holds the results of an evaluation at its step. If a hook has
    changed its state since the last checkpoint (by a final evaluation), the end of training saves
    again at the same step.

    A clean end is one without an error, the end of the data, Ctrl-C or SIGTERM. After any other
    error (such as a loss that is not finite), nothing is saved.

    `keep_best` ranks the checkpoints at whose own step the metric was logged, so evaluate at the
    same `every`. The ranking is this hook's state.

    Corrupt checkpoints don't count, and are never deleted.

    Args:
      every: When to save. None: only at the end.
      keep_last: Number of newest checkpoints to keep. None: all.
      keep_best: Number of best checkpoints to keep besides.
      metric: Name of the metric as logged, such as "val/accuracy". Required by `keep_best`.
      mode: "max" if higher values are better, "min" if lower ones are. None: "min" for losses
        (`losses/total`, `val/losses/kl`), and what the metric says of itself for a metric that an
        Evaluate hook computes: Keras's own metrics know it.
      keep_every: Checkpoints at multiples of this number of steps are never deleted.
      on_error: What happens if a checkpoint or another file of the run can't be written, because
        the disk is full for example. "stop" ends training, with CheckpointWriteError for a
        checkpoint. "continue" warns once for each kind of file, and retries: checkpoints when next
        due, logs at the next log, the best export at the next better value. The end of training
        warns of what is missing.

    Raises:
      ValueError: An argument is out of its range, or `metric` and `keep_best` aren't given
        together. Before the first step: no `mode` was given, and nobody knows the direction of the
        metric.
    """

    time_bucket = "checkpoint"
    async_logs = True  # the metric is logged before a checkpoint of its step is due

    def __init__(
        self,
        every: Every | OnSteps | None = None,
        *,
        keep_last: int | None = 3,
        keep_best: int = 0,
        metric: str | None = None,
        mode: Mode | None = None,
        keep_every: int | None = None,
        on_error: Literal["stop", "continue"] = "stop",
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
                "SaveCheckpoint: keep_best and metric must be given together, as in "
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
        self._metric = None
        if metric is not None:
            self._metric = MonitoredMetric("SaveCheckpoint", metric, mode)
        self._value: tuple[int, float] | None = None  # step and value of the last log of the metric
        self._saved: tuple[int, str] | None = None  # step and hooks' state of the last checkpoint
        self._failure: Exception | None = None  # why the last one was not saved
        self._ranking: Ranking | None = None  # of the checkpoints on the disk
        self._pending: Ranking | None = None  # the same with the one that is being written
        self._ending = False
        self._told = False  # whether it has warned since the last one that was written

    def before_train(self) -> None:
        """Checks that there is a directory, before the first checkpoint is due.

        Raises:
          ValueError: The trainer has no workdir, or nobody knows the direction of the metric.
        """
        self._value = self._failure = self._pending = None
        start = self.trainer.run.start
        resumed = start in self._directory().steps()
        self._saved = (start, self._state_of_hooks()) if resumed else None
        self._ranking, self._ending = ranking_of_state(self.state), False
        if self._metric is not None:
            self._metric.start(self.trainer.hooks)

    def on_log(self, step: int, scalars: Mapping[str, float], summaries: Sequence[Summary]) -> None:
        """Remembers the value of the metric."""
        value = self._metric.value(step, scalars) if self._metric is not None else None
        if value is not None:
            self._value = (step, value)

    def after_step(self, step: int) -> None:
        """Saves a checkpoint. At the last step the end of training saves it.

        Raises:
          CheckpointWriteError: It can't be written, and `on_error` is "stop".
        """
        if step < self.trainer.run.steps:
            self._save(step)

    def after_train(self) -> None:
        """Saves the last checkpoint at a clean end, and waits until it is written.

        Raises:
          CheckpointWriteError: It can't be written, and `on_error` is "stop".
        """
        step, error = self.trainer.step, self.trainer.error
        ended = error is None or isinstance(error, DataError | KeyboardInterrupt | Preempted)
        clean = ended and not isinstance(error, Aborted)
        self._ending = True
        if clean and (step > self.trainer.run.start or self._saved is not None):
            self._wait_for_write()
            self._update_ranking(step)
            # All workers decide together, because all of them must read the variables.
            changed = self._saved != (step, self._state_of_hooks())
            if self.trainer.agreement.agree([changed])[0][0]:
                self._save(step)
            self._wait_for_write()
            if self._failure is not None:
                warnings.warn(
                    f"Training ended without a checkpoint of step {step}. {self._failure}",
                    stacklevel=2,
                )
        elif self._writer is not None:  # the other workers may have exited
            try:
                self._writer.wait()
            except Exception as failure:  # noqa: BLE001 - training ends with its own error
                warnings.warn(str(failure), stacklevel=2)
        self._warn_about_metric(error)

    def _warn_about_metric(self, error: BaseException | None) -> None:
        """Warns if there is no best checkpoint because of a wrong name or a wrong `every`."""
        if self._metric is None:
            return
        self._metric.warn_if_never_logged(error)
        ranking = ranking_of_state(self.state)
        if self._value is not None and (ranking is None or not ranking.best):
            warnings.warn(
                f"SaveCheckpoint(keep_best={self.keep_best}) kept nothing: no checkpoint was "
                f"saved at a step where {self._metric.name!r} was logged as a finite number. "
                "Give SaveCheckpoint the same every as Evaluate.",
                stacklevel=3,
            )

    @property
    def _writer(self) -> BackgroundWriter | None:
        return self.trainer.writer

    def _save(self, step: int) -> None:
        self._wait_for_write()
        self._update_ranking(step)
        if not self._attempt(self.trainer.save_checkpoint):
            return
        self._saved = (step, self._state_of_hooks())
        ranking = ranking_of_state(self.state)
        best = ranking.steps if ranking is not None else set[int]()
        delete = functools.partial(self._delete_old, best)
        if self._writer is None:
            self._written()
            self._ranking = ranking
            delete()
        else:
            self._pending = ranking
            self._writer.then(delete)

    def _wait_for_write(self) -> None:
        """Waits, on all workers, until the background writer is done."""
        writer, run_on_all = self._writer, self.trainer.agreement.run_on_all
        if writer is None:
            return
        if not self._attempt(lambda: run_on_all("write a checkpoint", writer.wait)):
            self._saved = None  # so that the end saves again
        elif self._saved is not None:
            self._written()
            self._ranking = self._pending or self._ranking
        self._pending = None

    def _attempt(self, save: Callable[[], Any]) -> bool:
        """Runs a function that saves. If a write fails, `on_error` decides.

        Returns:
          Whether it succeeded on all workers.
        """
        try:
            save()
        except (CheckpointError, OSError, WorkerError) as error:
            if self._metric is not None:
                before = self._ranking or Ranking(self._metric.name, self._metric.mode)
                self.state.update(before.to_state())
            fatal = not isinstance(error, CheckpointWriteError | WorkerError)
            # An error that ended training must not be hidden; the end warns about the checkpoint.
            stop = self.on_error == "stop" and self.trainer.error is None
            if self.trainer.agreement.agree([fatal or stop])[0][0]:
                raise
            self._failure = error
            told, self._told = self._told, True
            if not (told or self._ending):
                warnings.warn(
                    f"{error} Training continues, and retries when the next checkpoint is due.",
                    stacklevel=3,
                )
            return False
        self._failure = None
        return True

    def _written(self) -> None:
        """Reports that a checkpoint was written, if the one before it was not."""
        if self._told:
            self._told = False
            self.trainer.logger.info("Checkpoints can be written again.")

    def _update_ranking(self, step: int) -> None:
        """Ranks the checkpoint of `step`, before it is saved together with the ranking."""
        metric = self._metric
        if metric is None:
            return
        directory, before = self._directory(), ranking_of_state(self.state)
        # The ranking by another metric, or in the other direction, is of no use.
        best: list[tuple[float, int]] = []
        if before is not None and before.is_by(metric.name, metric.mode):
            best = list(before.best)
        # Only the first worker reads the files. Its state is the one that is saved.
        existing = {step}
        try:
            chief = self.trainer.agreement.chief
            existing.update(directory.valid_steps() if chief else directory.steps())
        except CheckpointError:  # the directory can't be listed, and the save will fail
            existing.update(kept for _, kept in best)
        best = [entry for entry in best if entry[1] in existing]
        if self._value is not None and self._value[0] == step:
            value = self._value[1]
            if metric.is_improvement(value, None):  # finite
                best = [entry for entry in best if entry[1] != step] + [(value, step)]
        # The sort is stable: of equal ones, the earlier one is better.
        best.sort(key=lambda entry: -entry[0] if metric.mode == "max" else entry[0])
        ranking = Ranking(metric.name, metric.mode, tuple(best[: self.keep_best]))
        self.state.update(ranking.to_state())

    def _delete_old(self, best: set[int]) -> None:
        """Deletes the checkpoints that need not be kept. It may run in the background writer."""
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

    def _directory(self) -> CheckpointDirectory:
        if self.trainer.checkpoints is None:
            raise ValueError(
                "SaveCheckpoint has no directory to write to. Give the Trainer a workdir, or "
                "remove this hook."
            )
        return self.trainer.checkpoints

    def _state_of_hooks(self) -> str:
        """Returns everything that can change between two saves at the same step."""
        states = [
            encode(hook.state, f"The state of the hook {type(hook).__name__}, state")
            for hook in self.trainer.hooks
        ]
        return json.dumps([states, bool(self.trainer.window)])
