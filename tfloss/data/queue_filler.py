"""Fills a queue with the batches of an iterator: one by one, or in blocks read ahead. Host code."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import tensorflow as tf

from tfloss.data.batch_iterator import BatchIterator
from tfloss.data.batch_queue import BatchQueue
from tfloss.data.block_size import BlockSize
from tfloss.data.read_ahead import ReadAhead

_Result = TypeVar("_Result")


class QueueFiller:
    """Moves batches from an iterator to a queue, in order.

    If reading ahead meets an error, the iterator is moved back to before the block with the error,
    and its batches are read one by one. So all batches before the error come first, as they do
    without reading ahead.

    Args:
      iterator: Iterator of a `tf.data.Dataset` whose batches can be stacked.
      queue: Queue to fill.
      size: Decides on the batches' shape and the size of blocks.
      batches_per_step: Number of batches in a step.
      endless: Whether the data set is known to never end.
      current_step: Returns the number of steps taken before the queue's first batch.
      on_first_batch: Called when the first batch was read, before anything is read ahead.
      rewind: Given a number of batches, returns a function that moves the iterator to that many
        batches after those that left the queue, and returns it; or None if nothing can.
      clock: Returns the time in seconds.

    Attributes:
      waited: Seconds that callers have waited for data, in all.
      failed: Whether the data set raised an error in the last call.
      started: Whether the first batch was read.
    """

    def __init__(
        self,
        iterator: Any,
        queue: BatchQueue,
        size: BlockSize,
        batches_per_step: int,
        *,
        endless: bool,
        current_step: Callable[[], int],
        on_first_batch: Callable[[], None],
        rewind: Callable[[int], Callable[[], Any] | None],
        clock: Callable[[], float] = time.perf_counter,
    ):
        """Takes over the iterator; nothing is read yet."""
        self._batches, self._queue, self._size = BatchIterator(iterator), queue, size
        self._batches_per_step, self._endless = batches_per_step, endless
        self._current_step, self._on_first_batch = current_step, on_first_batch
        self._rewind, self._clock = rewind, clock
        self._ahead: ReadAhead | None = None
        self._ended = False
        self.waited = 0.0
        self.failed = self.started = False

    @property
    def reads_ahead(self) -> bool:
        """Whether the iterator is being read ahead."""
        return self._ahead is not None

    @property
    def error_pending(self) -> bool:
        """Whether an error that was met while reading ahead is still to be raised."""
        return self._batches.error_pending

    def add_batch(self) -> None:
        """Reads one batch from the iterator.

        Raises:
          StopIteration: The data ended.
        """
        batch = self.timed(self._batches.next)
        self._queue.append(batch)
        if not self.started:
            self.started = True
            if self._size.template is None:  # else a resumed run has it
                self._size.adopt(batch)
            self._on_first_batch()

    def postpone(self, error: Exception) -> None:
        """Raises an error of `add_batch` when the next batch is read instead of now."""
        self._batches.postpone(error)

    def add_block(self) -> bool:
        """Adds the next block that was read ahead, or one batch while an error is pending.

        Returns:
          Whether anything was added. If not, reading ahead is paused.

        Raises:
          StopIteration: The data ended.
        """
        if self._batches.error_pending:
            self.add_batch()
            return True
        if self._ended:
            raise StopIteration
        if self._ahead is None:
            self._ahead = self._read_ahead()
        try:
            pulled = self.timed(self._ahead.next)
        except tf.errors.OpError as error:
            self._read_again(error)
            return True
        if pulled.count:
            self._queue.append_block(pulled.block, pulled.count)
        self._ended = pulled.ended
        if pulled.remainder is not None:
            self._queue.append(pulled.remainder)
        return bool(pulled)

    def pause(self) -> None:
        """Pauses reading ahead, and adds all that was read to the queue."""
        ahead = self._ahead
        if ahead is None:
            return
        ahead.pause()
        try:
            while self._ahead is not None and not self._ended and self.add_block():
                pass
        except Exception:
            ahead.resume()
            raise

    def resume(self) -> None:
        """Resumes reading ahead, if it was begun."""
        if self._ahead is not None:
            self._ahead.resume()

    def adopt(self, batch: Any) -> None:
        """Stacks batches of this batch's shape from now on."""
        self.pause()
        self._ahead = None
        self._size.adopt(batch)

    def timed(self, call: Callable[[], _Result]) -> _Result:
        """Calls a function, adds its time to `waited`, and notes whether it failed."""
        began, self.failed = self._clock(), False
        try:
            return call()
        except (StopIteration, tf.errors.OutOfRangeError):
            raise
        except Exception:
            self.failed = True
            raise
        finally:
            self.waited += self._clock() - began

    def _read_ahead(self) -> ReadAhead:
        while len(self._queue) % self._batches_per_step:  # so that blocks hold complete steps
            self.add_batch()
        size = self._size
        next_step = self._current_step() + len(self._queue) // self._batches_per_step
        return ReadAhead(
            self._batches.iterator,
            size.template,
            size.batches,
            self._batches_per_step,
            offset=next_step % size.steps * self._batches_per_step if size.aligned else 0,
            aligned=size.aligned,
            endless=self._endless,
        )

    def _read_again(self, error: Exception) -> None:
        """Moves the iterator back to before the block that failed, to read it batch by batch."""
        assert self._ahead is not None
        move_back = self._rewind(len(self._queue))
        if move_back is None:
            raise error
        self._ahead.stop()
        self._ahead = None
        self._batches.read_again(move_back(), error, self._size.batches + 1)
        self.failed = False
