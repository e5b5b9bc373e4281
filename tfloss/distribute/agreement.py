"""Decisions that all workers of a run must make alike. Host code, cross-replica.

    agreement = Agreement(strategy)
    [stop], [due, max_steps] = agreement.agree([True], [0, 8])

Workers run the same program side by side, but clocks, signals and failures differ between them. A
worker that left the loop alone would leave the others waiting in a collective. So every decision
that depends on such a thing is made here, by one message of each worker to each other. All workers
call it at the same places, between calls of the training step, never inside a `tf.function`. With
one worker nothing is sent.

The messages go over the control channel (`tfloss.distribute.control_channel`), which names a worker
that is gone, or that is at another place of the program. A strategy that `make_strategy` has not
made has no such channel. Then they go over TensorFlow's collectives, which just wait.
"""

import contextlib
import json
import zlib
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import tensorflow as tf

from tfloss.common import nested_diff
from tfloss.distribute.lost_workers import COLLECTIVE_ERRORS, error_text
from tfloss.distribute.strategy import control_of, worker_position
from tfloss.errors import WorkerError

T = TypeVar("T")
_MAX_TEXT = 200  # letters of a value in a message


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
        self._channel, self._lost = control_of(strategy) or (None, None)

        def total(values: tf.Tensor) -> tf.Tensor:
            return strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None)

        signature = [tf.TensorSpec([None], tf.float64)]
        self._total = tf.function(total, input_signature=signature, autograph=False)

    def gather(self, place: str, value: Any, *, forget_errors: bool = False) -> list[Any]:
        """Returns what each worker gave. All workers must call it.

        Args:
          place: What the program does here, for messages: "save a checkpoint".
          value: A JSON value.
          forget_errors: Whether errors that the workers reported before no longer count, since the
            workers continue.

        Returns:
          The values by worker.

        Raises:
          WorkerError: A worker is at another place, or is gone. The message names it.
        """
        if self.workers == 1:
            return [value]
        if self._channel is not None:
            return self._channel.gather(place, value, forget_errors=forget_errors)
        content = np.frombuffer(json.dumps([place, value]).encode(), np.uint8)
        lengths = np.zeros(self.workers)
        lengths[self.index] = len(content)
        lengths = self._all_reduce_sum(lengths).astype(int)
        table = np.zeros([self.workers, lengths.max()])
        table[self.index, : len(content)] = content
        table = self._all_reduce_sum(table.ravel()).reshape(table.shape).astype(np.uint8)
        found = [json.loads(row[:n].tobytes()) for row, n in zip(table, lengths, strict=True)]
        if any(one[0] != place for one in found):
            each = "; ".join(f"worker {rank}: {one[0]}" for rank, one in enumerate(found))
            raise WorkerError(f"The workers do different things. They are at: {each}.")
        return [one[1] for one in found]

    def agree(
        self,
        flags: Sequence[bool],
        numbers: Sequence[float] = (),
        place: str = "the next decision",
    ) -> tuple[list[bool], list[float]]:
        """Any-reduces flags over the workers and broadcasts the chief's numbers.

        All workers must call it, with the same number of flags and of numbers.

        Args:
          flags: This worker's flags.
          numbers: This worker's numbers. Only the chief's count.
          place: What the program does here, for messages.

        Returns:
          Whether each flag is set on any worker, and the chief's numbers; the same on all workers.

        Raises:
          WorkerError: As `gather`.
        """
        if self.workers == 1:
            return list(flags), list(numbers)
        place = f"{place} ({len(flags)} flags, {len(numbers)} numbers)"
        found = self.gather(place, [list(map(bool, flags)), list(map(float, numbers))])
        return [any(one[0][i] for one in found) for i in range(len(flags))], found[0][1]

    def broadcast(self, values: Mapping[str, float]) -> dict[str, float]:
        """Broadcasts the chief's values to all workers, which must all call it.

        Args:
          values: This worker's values. All workers need the same names in the same order.

        Returns:
          The chief's values, by name.
        """
        place = f"the results {', '.join(values)}"
        return dict(zip(values, self.agree([], list(values.values()), place)[1], strict=True))

    def require_equal(
        self, values: Mapping[str, Any], advice: str, place: str = "a comparison"
    ) -> None:
        """Checks that all workers have the same values. All of them must call it.

        Args:
          values: This worker's values: JSON values by name, of any depth.
          advice: Sentences for the error message: what to do about a difference.
          place: What the program does here, for messages.

        Raises:
          WorkerError: Two workers differ. It is raised on all workers, and names the values.
        """
        if self.workers == 1:
            return
        flat = [nested_diff.flatten(one) for one in self.gather(place, dict(values))]
        differences: list[str] = []
        for name in {name: None for one in flat for name in one}:
            each = [_text(one.get(name, nested_diff.ABSENT)) for one in flat]
            if len(set(each)) > 1:
                listed = ", ".join(f"{text} on worker {i}" for i, text in enumerate(each))
                differences.append(f"{name} is {listed}")
        if differences:
            more = f"; and {len(differences) - 10} more" if len(differences) > 10 else ""
            raise self.error(f"The workers differ: {'; '.join(differences[:10])}{more}. {advice}")

    def error(self, text: str) -> WorkerError:
        """Makes an error that the workers can't go on after: all of them raise it.

        Args:
          text: The message.
        """
        return WorkerError(text) if self._channel is None else self._channel.error(text)

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
        text = None if failure is None else error_text(failure)
        found = self.gather(description, text)
        if failure is not None:
            raise failure
        failed = [f"{self._name(i)}: {one}" for i, one in enumerate(found) if one is not None]
        if failed:
            raise WorkerError(f"Another worker failed to {description}. {'; '.join(failed)}")
        return cast(T, result)

    @contextlib.contextmanager
    def call(self) -> Generator[None]:
        """Inside the `with` this worker depends on all others: if one is gone, it ends, too.

        Raises:
          WorkerError: In place of an error that followed from a difference of the workers, or
            from the loss of one.
        """
        with contextlib.nullcontext() if self._lost is None else self._lost.call():
            yield

    def tell(self, kind: str, text: str) -> None:
        """Sends a message to all other workers, where the control channel exists. They don't wait.

        Args:
          kind: The kind of the message.
          text: The message.
        """
        if self._channel is not None:
            self._channel.tell(kind, text)

    def listen(self, kind: str, listener: Callable[[int, str], None]) -> None:
        """Calls a function with the messages of a kind that other workers send.

        Args:
          kind: The kind of the message.
          listener: It is given the index of the worker and the text, in another thread.
        """
        if self._channel is not None:
            self._channel.listen(kind, listener)

    def report(self, error: BaseException) -> BaseException:
        """Tells the other workers of an error, and finds out whether one of them has caused it.

        Args:
          error: The error that this worker's call ends with.

        Returns:
          The error to raise: the same, or a `WorkerError` that names the worker that is gone.
        """
        if self._lost is not None:
            error = self._lost.explained(error)
            self._lost.report(error)
        elif self.workers > 1 and isinstance(error, COLLECTIVE_ERRORS):
            error.add_note(
                "tfloss: this error means that another worker was lost. The cause is in that "
                "worker's output. Start all workers again; they continue from the last "
                "checkpoint."
            )
        return error

    def _name(self, rank: int) -> str:
        name = f"worker {rank}" if self._channel is None else self._channel.name(rank)
        return name[0].upper() + name[1:]

    def _all_reduce_sum(self, values: np.ndarray) -> np.ndarray:
        """Sums float64 [n] over the workers by TensorFlow. All of them must call it."""
        return self._total(tf.constant(values, tf.float64)).numpy()


def _text(value: Any) -> str:
    if value is nested_diff.ABSENT:
        return "absent"
    text = f"{value:g}" if isinstance(value, float) else json.dumps(value)
    return (
        text
        if len(text) <= _MAX_TEXT
        else f"{text[:_MAX_TEXT]} ... ({zlib.crc32(text.encode()):08x})"
    )
