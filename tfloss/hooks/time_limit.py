"""Stops training after a time limit, with a checkpoint, so that the same command resumes it.

    TimeLimit(minutes=55)

This is for job queues with a time limit. A training script has the flag `--max_minutes=55`.
"""

import math
import time
from collections.abc import Callable

from tfloss.errors import TimeLimitReached
from tfloss.hooks.base import Hook
from tfloss.hooks.every import Every


class TimeLimit(Hook, own=True):
    """Makes `Trainer.train` raise `TimeLimitReached` after a number of minutes. Host.

    The time starts at the first `train` call with this hook. Hooks that are due at the last step
    run first, then a checkpoint is saved, so leave time for that. Several workers stop after the
    same step, by the clock of the first one. A run that has reached its last step ends normally.

    Args:
      minutes: Number of minutes, positive. Fractions are allowed.
      clock: Function that returns seconds. Tests can replace it.

    Raises:
      ValueError: `minutes` is not positive and finite.
    """

    def __init__(self, minutes: float, *, clock: Callable[[], float] = time.monotonic):
        if not 0 < minutes < math.inf:
            raise ValueError(f"TimeLimit({minutes!r}): minutes must be positive and finite.")
        self.minutes = minutes
        self._clock = clock
        self._end: float | None = None

    def before_train(self) -> None:
        """Starts the clock.

        Raises:
          ValueError: The trainer has no workdir to save a checkpoint in.
        """
        if self.trainer.checkpoints is None:
            raise ValueError(
                "TimeLimit has no directory to save a checkpoint in. Give the Trainer a workdir, "
                "or remove this hook."
            )
        now = self._clock()
        if self._end is None:
            self._end = now + 60 * self.minutes
        self.every = Every(seconds=max(self._end - now, 1e-3), clock=self._clock)
        self.every.start(self.trainer.run)

    def after_step(self, step: int) -> None:
        """Stops training.

        Raises:
          TimeLimitReached: The time is over, and the run hasn't reached its last step.
        """
        if step < self.trainer.run.steps:
            self.trainer.logger.info(
                f"{self.minutes:g} minutes are over at step {step}. Saving a checkpoint, then "
                f"exiting with code {TimeLimitReached.CODE}. The same command resumes from there."
            )
            raise TimeLimitReached
