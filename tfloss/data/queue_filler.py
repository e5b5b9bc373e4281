"""Fills a queue with the batches of an iterator: one by one, or in blocks read ahead. Host code."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import tensorflow as tf

from tfloss.data.batch_queue import BatchQueue
from tfloss.data.block_size import BlockSize
from tfloss.data.read_ahead import ReadAhead

_Result = TypeVar("_Result")


class QueueFiller:
    """Moves batches from an iterator to a queue, in order.

    If reading ahead meets an error, all batches before the error come first, as they do without
    reading ahead. Reading ahead then starts again behind the error.

    Args:
      iterator: Iterator of a `tf.data.Dataset` whose batches can be stacked.
      queue: Queue to fill.
      size: Decides on the batches' shape and the size of blocks.
      batches_per_step: Number of batches in a step.
      endless: Whether the data set is known to never end.
      current_step: Returns the number of steps taken before the queue's first batch.
      on_first_batch: Called when the first batch was read, before anything is read ahead.
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
        clock: Callable[[], float] = time.perf_counter,
    ):
        """Takes over the iterator; nothing is read yet."""
        self._iterator, self._queue, self._size = iterator, queue, size
        self._batches_per_step, self._endless = batches_per_step, endless
        self._current_step, self._on_first_batch = current_step, on_first_batch
        self._clock = clock
        self._ahead: ReadAhead | None = None
        self._prepared: ReadAhead | None = None
        self._postponed: Exception | None = None
        self._ended = False
        self.waited = 0.0
        self.failed = self.started = False

    @property
    def reads_ahead(self) -> bool:
        """Whether the iterator is being read ahead."""
        return self._ahead is not None

    @property
    def error_pending(self) -> bool:
        """Whether an error was met that is still to be raised. The iterator is behind it."""
        return self._postponed is not None

    def add_batch(self) -> None:
        """Reads one batch from the iterator.

        Raises:
          StopIteration: The data ended.
          Exception: Whatever the iterator raised, or the error that is pending.
        """
        batch = self.timed(self._next)
        self._queue.append(batch)
        if not self.started:
            self.started = True
            if self._size.template is None:  # else a resumed run has it
                self._size.adopt(batch)
            self._on_first_batch()

    def postpone(self, error: Exception) -> None:
        """Raises an error of `add_batch` when the next batch is read instead of now."""
        self._postponed = error

    def add_block(self) -> bool:
        """Adds the next block that was read ahead. After an error, it may be empty.

        Returns:
          Whether reading ahead isn't paused. If it is, nothing was added.

        Raises:
          StopIteration: The data ended.
          Exception: The error that is pending.
        """
        if self.error_pending:
            self.timed(self._next)
        if self._ended:
            raise StopIteration
        if self._ahead is None:
            self._ahead = self._read_ahead()
        try:
            pulled = self.timed(self._ahead.next)
        except tf.errors.OpError as error:
            block, count = self._ahead.salvage()
            if count:
                self._queue.append_block(block, count)
            self._ahead, self.failed = None, False
            self.postpone(error)
            return True
        if pulled.count:
            self._queue.append_block(pulled.block, pulled.count)
        self._ended = pulled.ended
        if pulled.remainder is not None:
            self._queue.append(pulled.remainder)
        return bool(pulled)

    def prepare(self, size: BlockSize) -> None:
        """Makes what reads ahead, for blocks that are expected. Nothing is read.

        Args:
          size: What they are expected to hold.
        """
        self._prepared = ReadAhead(
            self._iterator,
            size.template,
            size.batches,
            self._batches_per_step,
            aligned=size.aligned,
            endless=self._endless,
        )

    def pause(self) -> None:
        """Pauses reading ahead, and adds all that was read to the queue."""
        if self._ahead is not None:
            self._ahead.pause()
        while self._ahead is not None and not self._ended and self.add_block():
            pass

    def resume(self) -> None:
        """Resumes reading ahead, if it was begun."""
        if self._ahead is not None:
            self._ahead.resume()

    def stop(self) -> None:
        """Stops reading ahead, and adds all that was read to the queue."""
        self.pause()
        self._ahead = None

    def change_shape(self) -> None:
        """Changes the shape of blocks if single batches of another shape were repeated."""
        if self._size.repeated is not None:
            self.stop()
            self._size.adopt(self._size.repeated)

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

    def _next(self) -> Any:
        if self._postponed is not None:
            error, self._postponed = self._postponed, None
            raise error
        return next(self._iterator)

    def _read_ahead(self) -> ReadAhead:
        while len(self._queue) % self._batches_per_step:  # so that blocks hold complete steps
            self.add_batch()
        size = self._size
        if self._prepared is None or not self._prepared.is_for(size.template, size.batches):
            self.timed(lambda: self.prepare(size))
        ahead, self._prepared = self._prepared, None
        assert ahead is not None
        next_step = self._current_step() + len(self._queue) // self._batches_per_step
        ahead.start(next_step % size.steps * self._batches_per_step if size.aligned else 0)
        return ahead
