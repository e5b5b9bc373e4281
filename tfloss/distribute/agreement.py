"""Decisions that all workers of a run must make alike. Host code, cross-replica.

    agreement = Agreement(strategy)
    [stop], [due, max_steps] = agreement.agree([True], [0, 8])

Workers run the same program side by side, but clocks, signals and failures differ between them. A
worker that left the loop alone would leave the others waiting in a collective. So every decision
that depends on such a thing is made here, by one small all-reduce over the workers (about 2 ms on a
local network). All workers call it at the same places, between calls of the training step, never
inside a `tf.function`. With one worker nothing is sent.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, cast

import numpy as np
import tensorflow as tf

from tfloss.distribute.strategy import worker_position
from tfloss.errors import WorkerError

T = TypeVar("T")
_LOST_WORKER_ERRORS = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.InternalError,
)


class Agreement:
    """Collective decisions of the workers of one strategy.

    Args:
      strategy: The strategy of the run, of one or several workers.

    Attributes:
      index: The number of this worker. Worker 0 is the chief, the only one that writes files and
        logs messages.
      workers: The number of workers.
      chief: Whether this worker is the chief.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self.index, self.workers = worker_position(strategy)
        self.chief = self.index == 0

        def total(values: tf.Tensor) -> tf.Tensor:
            return strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None)

        signature = [tf.TensorSpec([None], tf.float64)]
        self._total = tf.function(total, input_signature=signature, autograph=False)

    def agree(
        self, flags: Sequence[bool], numbers: Sequence[float] = ()
    ) -> tuple[list[bool], list[float]]:
        """Any-reduces flags over the workers and broadcasts the chief's numbers.

        All workers must call it, with the same number of flags and of numbers.

        Args:
          flags: This worker's flags.
          numbers: This worker's numbers. Only the chief's count.

        Returns:
          Whether each flag is set on any worker, and the chief's numbers; the same on all workers.
        """
        if self.workers == 1:
            return list(flags), list(numbers)
        own = [*map(float, flags), *(float(n) if self.chief else 0.0 for n in numbers)]
        total = self.all_reduce_sum(np.array(own))
        return [count > 0 for count in total[: len(flags)]], total[len(flags) :].tolist()

    def broadcast(self, values: Mapping[str, float]) -> dict[str, float]:
        """Broadcasts the chief's values to all workers, which must all call it.

        Args:
          values: This worker's values. All workers need the same names in the same order.

        Returns:
          The chief's values, by name.
        """
        return dict(zip(values, self.agree([], list(values.values()))[1], strict=True))

    def require_equal(self, values: Mapping[str, float], advice: str) -> None:
        """Checks that all workers have the same values. All of them must call it.

        Args:
          values: This worker's values. All workers need the same names in the same order.
          advice: Sentences for the error message: what to do about a difference.

        Raises:
          WorkerError: Two workers differ. It is raised on all workers, and names the value.
        """
        if self.workers == 1:
            return
        table = np.zeros([self.workers, len(values)])
        table[self.index] = list(values.values())
        table = self.all_reduce_sum(table.ravel()).reshape(table.shape)
        for column, name in zip(table.T, values, strict=True):
            if (column != column[0]).any():
                each = ", ".join(f"{value:g} on worker {i}" for i, value in enumerate(column))
                raise WorkerError(f"The workers differ: {name} is {each}. {advice}")

    def run_on_all(self, description: str, function: Callable[[], T]) -> T:
        """Calls a function on every worker, and returns when it has ended on all of them.

        A worker that left the program earlier would end the others, which may still be writing.

        Args:
          description: What the function does, for the error message: "save a checkpoint".
          function: The function. An error that it raises on this worker is raised here.

        Returns:
          The function's result on this worker.

        Raises:
          WorkerError: The function failed on another worker only.
        """
        failure: Exception | None = None
        result: T | None = None
        try:
            result = function()
        except Exception as error:  # noqa: BLE001 - raised below, once the others know
            failure = error
        (failed,), _ = self.agree([failure is not None])
        if failure is not None:
            raise failure
        if failed:
            raise WorkerError(f"Another worker failed to {description}; see its output.")
        return cast(T, result)

    def explain_lost_worker(self, error: BaseException) -> None:
        """Adds a note to TensorFlow's error about a lost worker: what it means.

        Args:
          error: Any error. One that can't come from a lost worker stays as it is.
        """
        if self.workers > 1 and isinstance(error, _LOST_WORKER_ERRORS):
            error.add_note(
                "tfloss: this error means that another worker was lost. The cause is in that "
                "worker's output. Start all workers again; they continue from the last "
                "checkpoint."
            )

    def all_reduce_sum(self, values: np.ndarray) -> np.ndarray:
        """Sums an array over the workers, which must all call it.

        Args:
          values: float64 [n], of this worker.

        Returns:
          The sum, float64 [n].
        """
        return self._total(tf.constant(values, tf.float64)).numpy()
