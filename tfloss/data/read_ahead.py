"""Reads the next block of an iterator while the one before it is trained on. Host code."""

import dataclasses
import functools
import os
import weakref
from typing import Any

import tensorflow as tf

from tfloss.data.batch_queue import batch_shapes
from tfloss.data.pull_block import PullBlock, cpu_variable, empty_block
from tfloss.data.staging_area import StagingArea


@dataclasses.dataclass(frozen=True)
class PulledBlock:
    """A block that was read ahead, and what came after it.

    Attributes:
      block: Nest of tensors [batches of a full block, ...].
      count: Number of batches in it.
      remainder: A batch of another shape that came after them, or None.
      ended: Whether the data ended after that.
    """

    block: Any
    count: int
    remainder: Any
    ended: bool

    def __bool__(self) -> bool:
        """Returns whether anything was pulled; if not, reading is paused."""
        return self.count > 0 or self.remainder is not None or self.ended


class ReadAhead:
    """Reads one block ahead.

    Args:
      iterator: Iterator to read from. Nothing else may use it, except while reading is paused and
        after an error.
      template: A batch of the shape that is stacked.
      size: Number of batches in a full block.
      batches_per_step: Number of batches in a step.
      **options: Other arguments of `PullBlock`.
    """

    def __init__(
        self, iterator: Any, template: Any, size: int, batches_per_step: int = 1, **options: Any
    ):
        """Makes the pipeline. It reads from the first `next` on."""
        _free_abandoned()
        self._shapes, self._size = batch_shapes(template), size
        dataset_options = tf.data.Options()
        dataset_options.autotune.enabled = False  # closing the iterator would wait for its thread
        # A pool of its own: `PullBlock` blocks a thread that its own iterator may need.
        threading = dataset_options.threading
        threading.private_threadpool_size = max(4, 2 + (os.cpu_count() or 1))
        threading.max_intra_op_parallelism = 1  # those threads belong to the training step
        self._paused = paused = cpu_variable(False)
        self._pull = pull = PullBlock(iterator, template, size, batches_per_step, **options)
        nothing = functools.partial(empty_block, iterator, template)

        @tf.autograph.experimental.do_not_convert
        def pull_unless_paused(_: tf.Tensor) -> Any:
            return tf.cond(paused | pull.failed, nothing, pull)

        blocks = tf.data.Dataset.range(tf.int64.max).map(pull_unless_paused)
        self._blocks = [iter(blocks.prefetch(1).with_options(dataset_options))]
        # What the iterator refers to must not refer to `self`, or this would never happen.
        weakref.finalize(self, _abandon, self._blocks, pull.kept).atexit = False

    def is_for(self, template: Any, size: int) -> bool:
        """Returns whether it reads blocks of `size` batches like this one."""
        return self._size == size and self._shapes == batch_shapes(template)

    def start(self, offset: int) -> None:
        """Says where the first batch is, before it is read.

        Args:
          offset: Its offset within its block.
        """
        self._pull.offset.assign(offset)

    def next(self) -> PulledBlock:
        """Waits for the next block.

        Raises:
          tf.errors.OpError: The iterator failed. Nothing more is read. `salvage` returns the
            batches before the error.
        """
        block, remainder, flags = next(self._blocks[0])
        count, has_remainder, ended = flags.numpy().tolist()
        return PulledBlock(block, count, remainder if has_remainder else None, bool(ended))

    def pause(self) -> None:
        """Pauses reading. It has paused once `next` returns an empty block."""
        self._paused.assign(True)

    def resume(self) -> None:
        """Resumes reading."""
        self._paused.assign(False)

    def salvage(self) -> tuple[Any, int]:
        """Returns the batches between the last block and an error that `next` has raised.

        Returns:
          A block, and the number of batches in it.
        """
        return self._pull.take_kept()


def _abandon(blocks: list[Any], kept: StagingArea) -> None:
    """Ends the iterator, which waits for its thread, and notes that it may have left batches.

    It may be called anywhere, such as in the middle of a trace, so it must not run an op.
    """
    blocks.clear()
    _abandoned.append(kept)


def _free_abandoned() -> None:
    """Frees what readers that ended in the middle of a block have left."""
    with tf.init_scope():
        while _abandoned:
            _abandoned.pop().clear()


_abandoned: list[StagingArea] = []
