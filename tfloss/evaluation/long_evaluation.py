"""Says how far an evaluation is, if nobody knows where its data end. Host code."""

import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfloss.common.logger import ChiefLogger

_FIRST_SECONDS = 30.0


class LongEvaluation:
    """Counts the batches of one evaluation.

    An endless generator has an unknown length, as files have. So it is not refused, but said.

    Args:
      dataset: The data set. If it knows its length, nothing is said.
      logger: Receives a line after 30 seconds, and whenever the time has doubled since.
      clock: A function that returns the time in seconds.
    """

    def __init__(
        self,
        dataset: "tf.data.Dataset[Any]",
        logger: ChiefLogger,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._unknown = dataset.cardinality() == tf.data.UNKNOWN_CARDINALITY
        self._logger, self._clock = logger, clock
        self._began, self._wait, self._batches = clock(), _FIRST_SECONDS, 0

    def batch_done(self) -> None:
        """Counts a batch, and says how far the evaluation is if that is due."""
        self._batches += 1
        if not self._unknown or (seconds := self._clock() - self._began) < self._wait:
            return
        self._wait = 2 * seconds
        self._logger.info(
            f"evaluating: {self._batches:,} batches in {seconds:.0f} seconds so far. The data set "
            "doesn't know its length. If it never ends, as a generator with `while True` or a "
            "function with .repeat() in it, limit it with .take(n)."
        )
