"""Ends training when its time is up, with a checkpoint, so that the same command goes on.

TimeLimit(minutes=55)

For queues that kill a job after an hour, say. `--max_minutes=55` of a script is the same.
"""

import math
import time
from collections.abc import Callable

from tfloss.errors import TimeLimitReached
from tfloss.hooks.base import Hook
from tfloss.hooks.every import Every


class TimeLimit(Hook):
    """Raises `TimeLimitReached` out of `train` after a number of minutes. Host.

    They count from the first `train` call with this hook. Hooks that are due at that step run
    before, and a checkpoint is saved after, so leave time for it. Several workers stop after the
    same step, by the first one's clock. A training that has reached its last step just ends.

    Args:
      minutes: more than 0; may have a fraction.
      clock: seconds; injectable for tests.
    """

    def __init__(self, minutes: float, *, clock: Callable[[], float] = time.monotonic):
        if not 0 < minutes < math.inf:
            raise ValueError(f"TimeLimit({minutes!r}): minutes must be more than 0, and finite.")
        self.minutes = minutes
        self._clock = clock
        self._end: float | None = None

    def before_train(self) -> None:
        if self.trainer.checkpoints is None:
            raise ValueError(
                "TimeLimit has nowhere to save what was trained: give the Trainer a workdir, or "
                "leave this hook out."
            )
        now = self._clock()
        if self._end is None:
            self._end = now + 60 * self.minutes
        self.every = Every(seconds=max(self._end - now, 1e-3), clock=self._clock)
        self.every.start(self.trainer.run)

    def after_step(self, step: int) -> None:
        if step < self.trainer.run.steps:
            self.trainer.logger.info(
                f"{self.minutes:g} minutes are over at step {step}: saving a checkpoint, then "
                f"ending with exit code {TimeLimitReached.CODE}. The same command goes on from "
                "there."
            )
            raise TimeLimitReached
