"""Saves checkpoints while training, and keeps the last few and the best.

    Evaluate(test_set, {"accuracy": accuracy}, every=Every(epochs=1)),
    SaveCheckpoint(every=Every(epochs=1), keep_last=3, keep_best=1, metric="val/accuracy")

Put it last but for the writers, since a checkpoint holds the state of every hook.
"""

import json
import warnings
from typing import TYPE_CHECKING

from tfloss.errors import DataError, Preempted
from tfloss.hooks._watch import Watch
from tfloss.hooks.base import Hook
from tfloss.hooks.every import At, Every, check_trigger

if TYPE_CHECKING:
    from tfloss.checkpoint import CheckpointDirectory


class SaveCheckpoint(Hook):
    """Saves when due and at a clean end, then deletes what need not be kept. Host.

    Put it after the hooks whose state matters, Evaluate above all: a checkpoint holds the
    state of every hook at the moment it is saved. If a hook changed its state after the
    last one (a final evaluation), the end saves again at the same step.

    A clean end is one without an error, the data running out, Ctrl-C and SIGTERM. After any other
    error (a loss that is not finite) the last checkpoint saved before stays the last.

    `keep_best` ranks the checkpoints at whose own step the metric was logged, so evaluate
    at the same `every`. The state is this ranking.

    Args:
      every: when; None: only at the end.
      keep_last: how many of the newest stay; None: all.
      keep_best: how many of the best stay beside them.
      metric: as it is logged, "val/accuracy"; needed by keep_best.
      mode: "max" if more is better, "min" if less is. By default "min" for what is logged
        under `losses/` (`losses/total`, `val/losses/kl`), else "max".
    """

    timed_as = "checkpoint"

    def __init__(
        self,
        every: Every | At | None = None,
        *,
        keep_last: int | None = 3,
        keep_best: int = 0,
        metric: str | None = None,
        mode: str | None = None,
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
        self.every = every
        self.keep_last = keep_last
        self.keep_best = keep_best
        self._watch = Watch("SaveCheckpoint", metric, mode) if metric is not None else None
        self._value: tuple[int, float] | None = None  # the metric as last logged, and where
        self._saved: tuple[int, str] | None = None  # the last checkpoint, and all hooks' state

    def before_train(self) -> None:
        self._directory()  # fails now rather than at the first checkpoint
        self._saved = self._value = None
        if self._watch is not None:
            self._watch.start()

    def on_log(self, step, scalars, summaries) -> None:
        value = self._watch.value(step, scalars) if self._watch is not None else None
        if value is not None:
            self._value = (step, value)

    def after_call(self, step: int) -> None:
        self._rank(step)
        self.trainer.save_checkpoint()
        self._saved = (step, self._states())
        self._delete_others()

    def after_train(self) -> None:
        step, error = self.trainer.step, self.trainer.error
        clean = error is None or isinstance(error, DataError | KeyboardInterrupt | Preempted)
        if clean and step > self.trainer.run.start:
            self._rank(step)
            # Together: reading the variables takes all workers.
            changed = self._saved != (step, self._states())
            if self.trainer.agreement.settle([changed])[0][0]:
                self.after_call(step)
        if self._watch is not None:
            self._watch.finish(error)
            if self._value is not None and not self.state.get("best"):
                warnings.warn(
                    f"SaveCheckpoint(keep_best={self.keep_best}) kept nothing: no checkpoint was "
                    f"saved at a step where {self._watch.metric!r} was logged as a finite number. "
                    "Give SaveCheckpoint the same every as Evaluate, after it in the list.",
                    stacklevel=2,
                )

    def _rank(self, step: int) -> None:
        """Enters the checkpoint of `step` among the best, before it is saved with the state."""
        watch = self._watch
        if watch is None:
            return
        there = {*self._directory().steps(), step}
        ranking = [entry for entry in self.state.get("best", []) if entry[1] in there]
        if (
            self._value is not None
            and self._value[0] == step
            and watch.better(self._value[1], None)
        ):
            ranking = [entry for entry in ranking if entry[1] != step] + [[self._value[1], step]]
        # The sort is stable: of equals, the earlier stays.
        ranking.sort(key=lambda entry: -entry[0] if watch.mode == "max" else entry[0])
        self.state["best"] = ranking[: self.keep_best]

    def _delete_others(self) -> None:
        if self.keep_last is None or not self.trainer.agreement.chief:
            return
        steps = sorted(self._directory().steps())
        best = {step for _, step in self.state.get("best", [])}
        for step in steps[: -self.keep_last]:
            if step not in best:
                self._directory().delete(step)

    def _directory(self) -> "CheckpointDirectory":
        if self.trainer.checkpoints is None:
            raise ValueError(
                "SaveCheckpoint has nowhere to write: give the Trainer a workdir, or leave "
                "this hook out."
            )
        return self.trainer.checkpoints

    def _states(self) -> str:
        return json.dumps([hook.state for hook in self.trainer.hooks], sort_keys=True)
