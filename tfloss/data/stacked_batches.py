"""Batches of an iterator, stacked in blocks, for a loop that is one XLA program. Host code.

A block is pulled and stacked inside `tf.data` while the block before it is trained on. It holds
batches of one shape: that of the first batch. A batch of another shape, such as the smaller last
batch of an epoch, ends the current block and comes on its own. After several consecutive batches
of another shape, new blocks use that shape. The batches that were handed out decide, and not those
that were read ahead, so that a resumed run stacks the same ones.
"""

import contextlib
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any

from tfloss import _upstream
from tfloss.data.batch_queue import BatchQueue, StepInputs, stack_batches
from tfloss.data.block_size import BlockSize
from tfloss.data.queue_filler import QueueFiller


def raised_by_data(source: Any, error: Exception) -> bool:
    """Returns whether the data set raised an error, rather than the step that took its batches.

    Args:
      source: `BatchStacker`, or an iterator of which the step takes its batches inside the graph.
      error: The error.
    """
    if isinstance(source, BatchStacker):
        return source.failed
    return _upstream.raised_by_iterator(error)


class BatchStacker:
    """Takes over an iterator from its current position, and hands out its batches in order.

    Reading ahead doesn't change where an error of the data set is raised: only after all batches
    before it were handed out. After an error, call `drop_step` to continue behind it.

    Args:
      iterator: Iterator of a `tf.data.Dataset` whose batches can be stacked.
      batches_per_step: Number of batches in a step.
      endless: Whether the data set is known to never end.
      alignment: Number of steps, such as the log interval, at whose multiples calls are cut. If
        that many steps fit, blocks begin and end at multiples too, so that calls aren't cut twice.
      current_step: Returns the number of steps taken before what is next here.
      on_first_batch: Called when the first batch was read, before anything is read ahead.
      clock: Returns the time in seconds.
      state: What `size.state` returned at the current position, or None.

    Attributes:
      element_spec: Nest of `tf.TensorSpec`s of a batch, as the data set declares them.
      size: Decides on the shape of the batches in a block, and on the number of steps.
      reads_ahead: Whether to pull full blocks before they are asked for. Once they are, nothing
        else may use the iterator.
    """

    def __init__(
        self,
        iterator: Any,
        batches_per_step: int = 1,
        *,
        endless: bool = False,
        alignment: int = 1,
        current_step: Callable[[], int] = lambda: 0,
        on_first_batch: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
        state: Mapping[str, Any] | None = None,
    ):
        """Takes over the iterator; nothing is read yet."""
        self.element_spec = iterator.element_spec
        self._batches_per_step = batches_per_step
        self._queue = BatchQueue()
        self.size = BlockSize(batches_per_step, alignment)
        if state is not None:
            self.size.restore(state, iterator.element_spec)
        self._filler = QueueFiller(
            iterator,
            self._queue,
            self.size,
            batches_per_step,
            endless=endless,
            current_step=current_step,
            on_first_batch=on_first_batch,
            clock=clock,
        )
        self.reads_ahead = False

    @property
    def steps(self) -> int:
        """Number of steps in a full block; 0 before the first batch was read."""
        return self.size.steps

    @property
    def waited(self) -> float:
        """Seconds that the caller has waited for data, in all."""
        return self._filler.waited

    @property
    def failed(self) -> bool:
        """Whether the data set raised an error when it was last asked for batches."""
        return self._filler.failed

    def take(self, steps: int) -> StepInputs:
        """Returns the inputs of up to `steps` steps, and of at least one.

        Raises:
          StopIteration: No batch is left, or too few for a step.
        """
        self._filler.change_shape()
        if not self._filler.started:
            self._filler.add_batch()
        if not self.reads_ahead:
            return self._take_singles(steps)
        while len(self._queue) < self._batches_per_step:
            self._filler.add_block()
        if self._queue.starts_with_single():
            return self._stack_singles(steps)
        inputs = self._queue.take_steps(steps, self._batches_per_step)
        if inputs.block is None:
            self._observe(inputs.batches)
        else:
            self.size.count_block()
        return inputs

    def take_step(self) -> tuple[Any, ...]:
        """Returns the batches of one step.

        Raises:
          StopIteration: No batch is left, or too few for a step.
        """
        self._filler.change_shape()
        while len(self._queue) < self._batches_per_step:
            if self.reads_ahead and self._filler.started:
                self._filler.add_block()
            else:
                self._filler.add_batch()
        return self._observe(self._queue.take(self._batches_per_step))

    def prepare(self, rows: int | None) -> None:
        """Makes what reads ahead, but reads nothing. Then `take` needn't, the first time.

        Args:
          rows: The likely number of examples of a batch.
        """
        size = self.size.expected(self.element_spec, rows)
        if size is not None:
            self._filler.prepare(size)

    def stop_reading_ahead(self) -> None:
        """Reads no further than is asked for. What was read is handed out first."""
        if self.reads_ahead:
            self._filler.stop()
            self.reads_ahead = False

    def has_pending(self) -> bool:
        """Returns whether a batch or an error was taken from the iterator but not handed out."""
        return len(self._queue) > 0 or self._filler.error_pending

    def give_back(self, inputs: StepInputs, done: int = 0) -> None:
        """Takes inputs back; they are handed out again next.

        Args:
          inputs: Inputs that `take` returned last.
          done: Number of their steps that were trained on; those don't come again.
        """
        self._queue.put_back(inputs, done, self._batches_per_step)

    def drop_step(self) -> None:
        """Drops the other batches of the step in which an error was raised."""
        self._queue.clear()
        self._filler.failed = False

    @contextlib.contextmanager
    def paused(self) -> Generator[int | None]:
        """Pauses reading ahead, so that the iterator's state can be saved inside the `with`.

        Yields:
          The number of batches that were taken from the iterator but not handed out. None: the
          iterator is behind an error that is still to be raised, so its state would leave it out.
        """
        self._filler.pause()
        try:
            yield None if self._filler.error_pending else len(self._queue)
        finally:
            self._filler.resume()

    def _take_singles(self, steps: int) -> StepInputs:
        """Takes batches one by one, and no more from the iterator than asked for."""
        wanted = min(steps, self.steps) * self._batches_per_step
        try:
            while len(self._queue) < wanted:
                self._filler.add_batch()
        except Exception as error:
            if len(self._queue) < self._batches_per_step:
                raise
            if not isinstance(error, StopIteration):
                self._filler.postpone(error)
        return self._stack_singles(steps)

    def _stack_singles(self, steps: int) -> StepInputs:
        """Stacks the single batches of the blocks' shape at the front of the queue."""
        wanted = min(steps, self.steps) * self._batches_per_step
        steps = self._queue.count_singles(self.size.shapes, wanted) // self._batches_per_step
        batches = self._observe(self._queue.take(max(steps, 1) * self._batches_per_step))
        if not steps:
            return StepInputs(batches=batches)
        block = self._filler.timed(lambda: stack_batches(batches, self.size.batches))
        return StepInputs(block, 0, steps)

    def _observe(self, batches: tuple[Any, ...]) -> tuple[Any, ...]:
        """Notes the shapes of single batches that are handed out, and returns the batches."""
        for batch in batches:
            self.size.count_single(batch)
        return batches
