"""Batches that were taken from an iterator and not yet handed out, in order. Host code."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class StepInputs:
    """The inputs of one call of the engine: steps of a stacked block, or one step's batches.

    Attributes:
      block: Nest of tensors [batches of a full block, ...]; None if the batches aren't stacked.
      start: Index of the first batch in the block.
      steps: Number of steps that the block provides.
      batches: Batches of a single step if there is no block.
    """

    block: Any = None
    start: int = 0
    steps: int = 0
    batches: tuple[Any, ...] = ()


def batch_at(block: Any, index: Any) -> Any:
    """Returns one batch of a block. Host code, or traced.

    Args:
      block: Nest of tensors [batches, ...].
      index: Index of the batch, an int or an int scalar.
    """
    # With stacked[index], the index would be a constant of the XLA program.
    return tf.nest.map_structure(lambda stacked: tf.gather(stacked, index), block)


def stack_batches(batches: Iterable[Any], capacity: int) -> Any:
    """Returns a block of the given batches, padded with zeros to its capacity.

    Args:
      batches: Batches of one shape, at least one.
      capacity: Number of batches in a full block.
    """

    def stack(*tensors: tf.Tensor) -> tf.Tensor:
        # Zeros in a tensor of their own would take the memory of another block.
        missing = [[0, capacity - len(tensors)], *([[0, 0]] * tensors[0].shape.rank)]
        return tf.pad(tf.stack(tensors), missing)

    return tf.nest.map_structure(stack, *batches)


def batch_shapes(batch: Any) -> list[tf.TensorShape]:
    """Returns the shapes of a batch's tensors, in the order of `tf.nest.flatten`."""
    return [tensor.shape for tensor in tf.nest.flatten(batch)]


@dataclasses.dataclass
class _Entry:
    """Consecutive batches of a block, or a single batch.

    Attributes:
      block: Nest of tensors [batches of a full block, ...], or None.
      start: Index of the first batch in the block.
      count: Number of batches.
      batch: The batch if there is no block.
    """

    block: Any = None
    start: int = 0
    count: int = 1
    batch: Any = None


class BatchQueue:
    """A first-in, first-out queue of batches, some of which are stacked in blocks."""

    def __init__(self):
        """Creates an empty queue."""
        self._entries: list[_Entry] = []

    def __len__(self) -> int:
        """Returns the number of batches."""
        return sum(entry.count for entry in self._entries)

    def append(self, batch: Any) -> None:
        """Adds a single batch at the end."""
        self._entries.append(_Entry(batch=batch))

    def append_block(self, block: Any, count: int) -> None:
        """Adds the first `count` batches of a block at the end."""
        self._entries.append(_Entry(block, 0, count))

    def put_back(self, inputs: StepInputs, done: int, batches_per_step: int) -> None:
        """Puts inputs back at the front, without the steps that were trained on.

        Args:
          inputs: Inputs that were taken from this queue most recently.
          done: Number of steps that were trained on.
          batches_per_step: Number of batches in a step.
        """
        start = inputs.start + done * batches_per_step
        count = (inputs.steps - done) * batches_per_step
        rest = [_Entry(inputs.block, start, count)] if count else []
        self._entries[:0] = [_Entry(batch=batch) for batch in inputs.batches] or rest

    def clear(self) -> None:
        """Drops all batches."""
        self._entries.clear()

    def starts_with_single(self) -> bool:
        """Returns whether the next batch is a single one, not part of a block."""
        return self._entries[0].block is None

    def count_singles(self, shapes: list[tf.TensorShape], most: int) -> int:
        """Counts the single batches of one shape at the front.

        Args:
          shapes: Shapes of a batch's tensors.
          most: Upper bound on the result.
        """
        count = 0
        for entry in self._entries[:most]:
            if entry.block is not None or batch_shapes(entry.batch) != shapes:
                break
            count += 1
        return count

    def take(self, count: int) -> tuple[Any, ...]:
        """Removes and returns the next `count` batches, one by one."""
        taken: list[Any] = []
        while len(taken) < count:
            entry = self._entries[0]
            taken.append(entry.batch if entry.block is None else batch_at(entry.block, entry.start))
            self._advance(1)
        return tuple(taken)

    def take_steps(self, steps: int, batches_per_step: int) -> StepInputs:
        """Removes and returns steps of the block at the front.

        Args:
          steps: Upper bound on the number of steps.
          batches_per_step: Number of batches in a step.

        Returns:
          Steps of that block. If it holds less than one step, the batches of one step.
        """
        entry = self._entries[0]
        steps = min(entry.count // batches_per_step, steps)
        if not steps:
            return StepInputs(batches=self.take(batches_per_step))
        inputs = StepInputs(entry.block, entry.start, steps)
        self._advance(steps * batches_per_step)
        return inputs

    def _advance(self, count: int) -> None:
        """Removes `count` batches of the first entry."""
        entry = self._entries[0]
        entry.start, entry.count = entry.start + count, entry.count - count
        if not entry.count:
            self._entries.pop(0)
