"""How a resumed run finds its position in the data again: one class for each way. Host code.

- `Seek`: a `Source` is read from its n-th batch on.
- `SavedIterator`: TensorFlow saves the state of an iterator, shuffle buffers included. This works
  on one replica.
- `ReadAgain`: any other data set is read again from its beginning, up to the position. This is
  exact if reading it again gives the same batches.

The position counts the batches that were trained on. Batches that were read ahead are read again.
"""

import abc
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import tensorflow as tf

from tfloss import _upstream
from tfloss.data.batch_reader import BatchReader
from tfloss.data.first_batch import FirstBatch
from tfloss.data.nondeterminism import nondeterministic_inputs, unsaveable_inputs
from tfloss.data.position import (
    MAX_STATE_BYTES,
    IteratorStates,
    iterator_files,
    restore_iterator,
)


def resume_strategy(reader: BatchReader) -> "ResumeStrategy":
    """Chooses the first strategy that suits a data set, in the order of the list above."""
    if reader.seekable:
        return Seek(reader)
    if reader.strategy.num_replicas_in_sync > 1:
        return ReadAgain(reader, "it is cut over several replicas", compare=reader.shared)
    if unsaveable := unsaveable_inputs(reader.dataset):
        reason = "no checkpoint can hold the state of " + ", ".join(unsaveable)
        return ReadAgain(reader, reason, compare=reader.shared)
    return SavedIterator(reader)


class ResumeStrategy(abc.ABC):
    """How the position in one data set is saved and found again.

    The defaults are those of a data set of which nothing can be saved.

    Args:
      reader: Opens the iterators.

    Attributes:
      name: The name that checkpoints use: "seek", "iterator" or "skip".
      records: Whether `record` records anything.
      reason: Why the state of the iterator is not saved; empty if it need not be.
      first: The checksum of the first batch, for later runs and other workers to compare; or None.
    """

    name: ClassVar[str]
    records: ClassVar[bool] = False
    reason: str = ""
    first: FirstBatch | None = None

    def __init__(self, reader: BatchReader):
        self._reader = reader

    @property
    def needs_early_state(self) -> bool:
        """Whether a state should be recorded soon, since later ones may be of no use."""
        return False

    @abc.abstractmethod
    def open(self, batches: int) -> Any:
        """Opens an iterator at batch number `batches`; strategies that can't seek open it at 0."""

    def record(self, iterator: Any, batches: int) -> "ResumeStrategy":
        """Records the iterator's state, which is `batches` batches from the beginning.

        Returns:
          The strategy to use from now on: another one if the state can't be saved.
        """
        return self

    def saved(self, batches: int) -> tuple[dict[str, bytes], int]:
        """The newest recorded state that is not after `batches`.

        Returns:
          The state as files by name, and the number of batches to read past from there.
        """
        return {}, batches

    def restore(self, iterator: Any, files: Mapping[str, bytes]) -> bool:
        """Restores a saved state into an iterator at the beginning.

        Returns:
          False if there is no state to restore, so that the data must be read again.

        Raises:
          tf.errors.OpError, ValueError, AssertionError: The state belongs to other data.
        """
        return False

    def restored(  # noqa: B027 - by default nothing is recorded
        self, batches: int, files: Mapping[str, bytes] | None
    ) -> None:
        """Forgets all recorded states but this one, `batches` batches from the beginning."""

    def snapshot(self, iterator: Any, batches: int) -> Callable[[], Any] | None:
        """Returns a function that brings the data back to where they are now, or None.

        Args:
          iterator: The iterator.
          batches: Its position.

        Returns:
          A function that returns the iterator to use. None: the data can't be brought back.
        """
        return None

    def irreproducible(self, *, op_determinism: bool) -> list[str]:
        """What keeps a resumed run from seeing the batches that this run sees.

        Args:
          op_determinism: Whether op determinism is on, so that parallel calls keep their order.
        """
        return nondeterministic_inputs(self._reader.dataset, op_determinism=op_determinism)


class Seek(ResumeStrategy):
    """A `Source` is opened at the position."""

    name = "seek"

    def open(self, batches: int) -> Any:
        """Opens an iterator at batch number `batches`."""
        return self._reader.open(batches)

    def snapshot(self, iterator: Any, batches: int) -> Callable[[], Any] | None:
        """A new iterator at the same position."""
        return functools.partial(self._reader.open, batches)

    def irreproducible(self, *, op_determinism: bool) -> list[str]:
        """What in the functions of a `Source` is random; its order is a function of its seed."""
        source: Any = self._reader.data
        return source.randomness()


class SavedIterator(ResumeStrategy):
    """The iterator's state is saved by TensorFlow.

    An iterator that is read ahead is past the position that a checkpoint needs. So states are
    recorded now and then, and a checkpoint gets the newest one that is not past its position.

    An iterator that has met the end of its data has dropped its shuffles. Its state doesn't say any
    more which order the next pass has, so it is not recorded.

    An iterator that fills the file of a `cache(filename)` has its state in parts of that file. A
    killed process leaves them unusable. So nothing is recorded before the file is complete.
    """

    name = "iterator"
    records = True

    def __init__(self, reader: BatchReader):
        super().__init__(reader)
        self._states, self._recorded = IteratorStates(), False
        self._shuffles = 0 if reader.endless else _upstream.reshuffles(reader.dataset)
        self._caches = _upstream.cache_files(reader.dataset)

    def open(self, batches: int) -> Any:
        """Opens an iterator at the beginning, and forgets the recorded states."""
        self._states, self._recorded = IteratorStates(batches), False
        return self._reader.open()

    @property
    def needs_early_state(self) -> bool:
        """Whether nothing of this pass was recorded yet, and a state at its end is of no use."""
        return self._shuffles > 0 and not self._recorded

    def record(self, iterator: Any, batches: int) -> ResumeStrategy:
        """Records the state. A large one is not kept if reading the data again gives the same."""
        if self._fills_a_cache():
            return self
        repeatable = not nondeterministic_inputs(self._reader.dataset)
        files = iterator_files(iterator, MAX_STATE_BYTES if repeatable else math.inf)
        if isinstance(files, str):
            return ReadAgain(self._reader, files)
        self._recorded = True
        if _upstream.saved_shuffles(files) >= self._shuffles:
            self._states.add(batches, files)
        return self

    def saved(self, batches: int) -> tuple[dict[str, bytes], int]:
        """The newest recorded state that is not after `batches`; older ones are forgotten."""
        return self._states.at(batches)

    def restore(self, iterator: Any, files: Mapping[str, bytes]) -> bool:
        """Restores a saved state, if there is one."""
        if files:
            restore_iterator(iterator, files)
        return bool(files)

    def restored(self, batches: int, files: Mapping[str, bytes] | None) -> None:
        """Forgets all recorded states but this one."""
        self._states = IteratorStates(batches, files)

    def snapshot(self, iterator: Any, batches: int) -> Callable[[], Any] | None:
        """Saves the state now, unless it is large."""
        if self._fills_a_cache():
            return None
        files = iterator_files(iterator, MAX_STATE_BYTES)
        return None if isinstance(files, str) else functools.partial(_at, iterator, files)

    def _fills_a_cache(self) -> bool:
        """Whether the iterator may be writing the file of a `cache(filename)`."""
        self._caches = [one for one in self._caches if not tf.io.gfile.exists(f"{one}.index")]
        return bool(self._caches)

    def irreproducible(self, *, op_determinism: bool) -> list[str]:
        """What is not in order. What a shuffle has drawn is in the saved state, seeded or not."""
        return nondeterministic_inputs(
            self._reader.dataset, op_determinism=op_determinism, seeds=False
        )


class ReadAgain(ResumeStrategy):
    """The data are read again from their beginning, up to the position.

    Args:
      reader: Opens the iterators.
      reason: Why the state of the iterator is not saved.
      compare: Whether to take a checksum of the first batch.
    """

    name = "skip"

    def __init__(self, reader: BatchReader, reason: str, *, compare: bool = False):
        super().__init__(reader)
        self.reason = reason
        self.first = FirstBatch() if compare else None

    def open(self, batches: int) -> Any:
        """Opens an iterator at the beginning."""
        return self._reader.open(watch=None if self.first is None else self.first.watch)


def _at(iterator: Any, files: Mapping[str, bytes]) -> Any:
    """Restores an iterator's state in place."""
    restore_iterator(iterator, files)
    return iterator
