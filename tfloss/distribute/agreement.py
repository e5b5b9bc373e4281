"""What several workers decide together, so that none leaves while others wait in a collective.

    agreement = Agreement(strategy)
    asked, (due, most) = agreement.agree([True], [0, 8])    # anyone's wishes, the chief's numbers

Workers run the same program side by side, but clocks, signals and failures are each one's own.
What depends on them is settled here, by one small reduction over all workers (about 2 ms on a
local network), made by all of them at the same places: between calls of the training step. With
one worker everything is its own and nothing is sent. Host code, cross-replica, never inside a
`tf.function`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from tfloss.distribute.strategy import worker_position
from tfloss.errors import WorkerError

T = TypeVar("T")
_LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.InternalError)


class Agreement:
    """The workers of one strategy, as they agree.

    Attributes:
      index: this worker's number; 0 is the chief, which alone writes files and prints.
      workers: how many there are.
      chief: whether this worker is the chief.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self.index, self.workers = worker_position(strategy)
        self.chief = self.index == 0

        def total(values: tf.Tensor) -> tf.Tensor:
            return strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None)

        signature = [tf.TensorSpec([None], tf.float64)]
        self._total = tf.function(total, input_signature=signature, autograph=False)

    def agree(
        self, wishes: Sequence[bool], numbers: Sequence[float] = ()
    ) -> tuple[list[bool], list[float]]:
        """Whether any worker has each wish, and the chief's numbers, on every worker.

        All workers must call it, with as many wishes and numbers.
        """
        if self.workers == 1:
            return list(wishes), list(numbers)
        said = [*map(float, wishes), *(float(n) if self.chief else 0.0 for n in numbers)]
        found = self.sum(np.array(said))
        return [one > 0 for one in found[: len(wishes)]], found[len(wishes) :].tolist()

    def chiefs(self, values: Mapping[str, float]) -> dict[str, float]:
        """The chief's values, on every worker. All must have the same names, in the same order."""
        return dict(zip(values, self.agree([], list(values.values()))[1], strict=True))

    def check_same(self, values: Mapping[str, float], advice: str) -> None:
        """Raises WorkerError on all workers if one has another value: which, and the advice."""
        if self.workers == 1:
            return
        table = np.zeros([self.workers, len(values)])
        table[self.index] = list(values.values())
        table = self.sum(table.ravel()).reshape(table.shape)
        for column, name in zip(table.T, values, strict=True):
            if (column != column[0]).any():
                each = ", ".join(f"{value:g} on worker {i}" for i, value in enumerate(column))
                raise WorkerError(f"The workers differ: {name} is {each}. {advice}")

    def together(self, what: str, work: Callable[[], T]) -> T:
        """Does something on every worker, and returns when it is done on all.

        So nobody leaves the program, and with it takes the others along, while one still writes.

        Args:
          what: it is, as in "save a checkpoint".

        Raises what `work` raised here; WorkerError if it failed on another worker only.
        """
        failure: Exception | None = None
        result: Any = None
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - raised below, when the others know
            failure = error
        (failed,), _ = self.agree([failure is not None])
        if failure is not None:
            raise failure
        if failed:
            raise WorkerError(f"Another worker failed to {what}; see what it printed.")
        return result

    def explain(self, error: BaseException) -> None:
        """Adds to TensorFlow's error about a lost worker what it means."""
        if self.workers > 1 and isinstance(error, _LOST):
            error.add_note(
                "tfloss: this is what the loss of another worker looks like from here; the cause "
                "is in that worker's output. All workers must be started again; they go on from "
                "the last checkpoint."
            )

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The sum over workers of float64 [n]."""
        return self._total(tf.constant(values, tf.float64)).numpy()
