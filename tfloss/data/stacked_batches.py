"""Batches of an iterator, stacked in blocks, for a loop that XLA compiles whole.

A block is pulled and stacked inside `tf.data`, while the block before it is trained on. It holds
batches of one shape, that of the first batch; a batch of another size (the last of an epoch) ends
its block and comes out alone, until several of one size have followed each other: then that is the
blocks' from there on. Host code.
"""

import contextlib
import dataclasses
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tfloss.data.read_ahead import ReadAhead, Singles

MAX_BLOCK_BYTES = 24 * 2**20  # of a block; three of them exist at a time
MAX_BLOCK_STEPS = 400
MIN_BLOCK_STEPS = 8  # in fewer, a loop compiled whole has nothing to win
_OTHERS = 3  # batches of another size in a row make it the blocks'; the next time twice as many do


@dataclasses.dataclass(frozen=True)
class StepInputs:
    """What a call of the engine trains on: steps of a block, or the batches of one step.

    Attributes:
      block: tensors [batches of a full block, ...], or None.
      start: the first batch of it.
      steps: how many.
      batches: of a single step, if there is no block.
    """

    block: Any = None
    start: int = 0
    steps: int = 0
    batches: tuple = ()


def reason_not_to_stack(spec: Any) -> str | None:
    """Why batches of a spec can't be stacked for XLA; None if they can.

    All must be dense numbers, of shapes that are static but for the number of examples.
    """
    for one in tf.nest.flatten(spec):
        if not isinstance(one, tf.TensorSpec):
            return f"a batch holds a {type(one).__name__.removesuffix('Spec')}"
        if one.dtype == tf.string:
            return "a batch holds strings"
        if one.shape.rank is None or not one.shape[1:].is_fully_defined():
            return f"a batch holds a tensor of shape {one.shape}, which isn't static"
    return None


def batch_at(block: Any, index: Any) -> Any:
    """One batch of a block. Host code, or traced."""
    # Not stacked[index]: what that begins at would be a constant of the XLA program.
    return tf.nest.map_structure(lambda stacked: tf.gather(stacked, index), block)


def raised_by_data(source: Any, error: Exception) -> bool:
    """Whether it is the data that raised an error, rather than the step that took them.

    Args:
      source: `BatchStacker`, or an iterator of which the step takes its batch itself.
    """
    if isinstance(source, BatchStacker):
        return source.failed
    # "IteratorGetNext/_4" only receives from it, and may be named beside another op that failed.
    return re.search(r"IteratorGetNext\w*(?!\w|/_\d)", str(error)) is not None


@dataclasses.dataclass
class _Run:
    """Batches that follow each other: some of a block, or a single one."""

    block: Any = None
    start: int = 0
    count: int = 1
    batch: Any = None


class BatchStacker:
    """Takes an iterator over, from where it is.

    An error in the data is raised when all that came before it is given out, as it would be if
    nothing was read ahead, where `rewind` knows how to go back to before the block that it is in.
    Then say `drop_step`, and go on.

    Args:
      iterator: of a `tf.data.Dataset` whose batches can be stacked.
      batches_per_step: batches that a step takes.
      endless: whether the data set is known to never end.
      alignment: blocks are to begin at multiples of this many steps, and hold as many, if they can:
        then calls that are cut there aren't cut at the ends of blocks too.
      current_step: gives the number of steps that were taken before what is still in here.
      on_first_batch: called when the first batch was taken, before anything is read ahead.
      rewind: gives what makes an iterator that is so many batches after those that were given out,
        or None.
      clock: seconds.

    Attributes:
      reads_ahead: whether to pull full blocks before they are asked for; then nothing else may use
        the iterator.
      steps: in a full block; 0 before the first batch was taken.
      waited: seconds that the caller has waited for data, in all.
      failed: whether the data raised an error when they were last asked for some.

    Raises (from `take` and `take_step`):
      StopIteration: there is no batch left, or too few for a step.
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
        rewind: Callable[[int], Callable[[], Any] | None] = lambda count: None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._singles, self._batches_per_step, self._endless = (
            Singles(iterator),
            batches_per_step,
            endless,
        )
        self._alignment, self._current_step = alignment, current_step
        self._on_first_batch, self._rewind, self._clock = on_first_batch, rewind, clock
        self.reads_ahead = False
        self.waited = 0.0
        self.failed = False
        self.steps = 0
        self._like: Any = None  # a batch of the size that is stacked
        self._last: list[tf.TensorShape] = []  # of the last batch that came singly
        self._alike, self._others = 0, _OTHERS
        self._queue: list[_Run] = []  # taken from the iterator, not yet given out
        self._reader: ReadAhead | None = None
        self._ended = False

    def take(self, steps: int) -> StepInputs:
        """The data of up to `steps` steps, at least one."""
        if self._like is None:
            self._single()
        if not self.reads_ahead:
            return self._few(steps)
        while self._waiting() < self._batches_per_step:
            if self._singles.expected:
                return self._few(steps)
            self._fetch()
        head = self._queue[0]
        if head.batch is not None:
            return self._of_singles(steps)
        here = min(head.count // self._batches_per_step, steps)
        if not here:
            return StepInputs(batches=self._batches(self._batches_per_step))
        head.start, head.count = (
            head.start + here * self._batches_per_step,
            head.count - here * self._batches_per_step,
        )
        if not head.count:
            self._queue.pop(0)
        return StepInputs(head.block, head.start - here * self._batches_per_step, here)

    def _few(self, steps: int) -> StepInputs:
        """Takes no more from the iterator than that."""
        wanted = min(steps, self.steps) * self._batches_per_step
        try:
            while self._waiting() < wanted:
                self._single()
        except Exception as error:
            if self._waiting() < self._batches_per_step:
                raise
            if not isinstance(error, StopIteration):
                self._singles.postpone(error)
        return self._of_singles(steps)

    def _of_singles(self, steps: int) -> StepInputs:
        """Of the batches at the head of the queue that came one by one."""
        wanted = min(steps, self.steps) * self._batches_per_step
        like, alike = _shapes(self._like), 0
        for run in self._queue[:wanted]:
            if run.batch is None or _shapes(run.batch) != like:
                break
            alike += 1
        steps = alike // self._batches_per_step
        batches = self._batches(max(steps, 1) * self._batches_per_step)
        if not steps:
            return StepInputs(batches=batches)
        full = self.steps * self._batches_per_step

        def stacked(*each):
            empty = tf.zeros([full - len(each), *each[0].shape], each[0].dtype)
            return tf.concat([tf.stack(each), empty], 0)

        block = self._timed(lambda: tf.nest.map_structure(stacked, *batches))
        return StepInputs(block, 0, steps)

    def has_pending(self) -> bool:
        """Whether something that was taken from the iterator is still in here, if only an error."""
        return bool(self._queue) or self._singles.expected

    def take_step(self) -> tuple:
        """The batches of one step."""
        while self._waiting() < self._batches_per_step:
            if self.reads_ahead and self._like is not None:
                self._fetch()
            else:
                self._single()
        return self._batches(self._batches_per_step)

    def give_back(self, part: StepInputs, done: int = 0) -> None:
        """Takes back a part of which so many steps were trained on: the rest comes next."""
        first, count = (
            part.start + done * self._batches_per_step,
            (part.steps - done) * self._batches_per_step,
        )
        rest = [_Run(part.block, first, count)] if count else []
        self._queue[:0] = [_Run(batch=one) for one in part.batches] or rest

    def drop_step(self) -> bool:
        """Drops the batches of the step that an error was in, when it was raised.

        Returns whether the iterator is right behind it, not ahead.
        """
        self._queue.clear()
        self.failed = False
        return self._reader is None

    @contextlib.contextmanager
    def paused(self) -> Iterator[int]:
        """Inside, nothing is pulled, so that the iterator's state can be saved.

        Gives how many batches were taken from the iterator and not yet from here.
        """
        self._rest()
        try:
            yield self._waiting()
        finally:
            if self._reader is not None:
                self._reader.hold(False)

    def _rest(self) -> None:
        """Takes what was pulled, and lets nothing more be."""
        reader = self._reader
        if reader is None:
            return
        reader.hold(True)
        try:
            while self._reader is not None and not self._ended and self._fetch():
                pass
        except Exception:
            reader.hold(False)
            raise

    def _single(self) -> None:
        """Takes one batch from the iterator."""
        batch = self._timed(self._singles.next)
        self._queue.append(_Run(batch=batch))
        if self._like is None:
            self._stack_like(batch)
            self._on_first_batch()
        else:
            self._look_at(batch)

    def _stack_like(self, batch: Any) -> None:
        """Batches of this one's size are stacked from now on."""
        self._like = batch
        size = sum(x.dtype.size * int(tf.size(x)) for x in tf.nest.flatten(batch))
        most = MAX_BLOCK_BYTES // max(1, size * self._batches_per_step)
        self.steps = max(1, min(MAX_BLOCK_STEPS, most))
        if self._alignment < self.steps:
            self.steps -= self.steps % self._alignment

    def _look_at(self, batch: Any) -> None:
        """Stacks others from now on, if several like this one came, with none between them."""
        shapes = _shapes(batch)
        self._alike = self._alike + 1 if shapes == self._last else 1
        self._last = shapes
        if self._alike >= self._others and shapes != _shapes(self._like):
            self._others *= 2  # each new size may be a program to compile
            self._rest()
            self._reader = None
            self._stack_like(batch)

    def _waiting(self) -> int:
        return sum(run.count for run in self._queue)

    def _batches(self, count: int) -> tuple:
        """So many batches, one by one."""
        found = []
        while len(found) < count:
            run = self._queue[0]
            found.append(batch_at(run.block, run.start) if run.batch is None else run.batch)
            run.start, run.count = run.start + 1, run.count - 1
            if not run.count:
                self._queue.pop(0)
        return tuple(found)

    def _fetch(self) -> bool:
        """Gets what was pulled next. Returns False if that is nothing, because pulling waits."""
        if self._singles.expected:
            self._single()
            return True
        if self._ended:
            raise StopIteration
        if self._reader is None:
            self._reader = self._new_reader()
        try:
            pulled = self._timed(self._reader.next)
        except tf.errors.OpError as error:
            self._go_back(error)
            return True
        if pulled.count:
            self._queue.append(_Run(pulled.block, 0, pulled.count))
            self._alike = 0
        self._ended = pulled.ended
        if pulled.odd is not None:
            self._queue.append(_Run(batch=pulled.odd))
            self._look_at(pulled.odd)
        return bool(pulled)

    def _go_back(self, error: Exception) -> None:
        """To before the block that wasn't pulled, to take its batches singly up to the error."""
        assert self._reader is not None
        go = self._rewind(self._waiting())
        if go is None:
            raise error
        self._reader.stop()
        self._reader = None
        self._singles.seek(go(), error, self.steps * self._batches_per_step + 1)
        self.failed = False

    def _new_reader(self) -> ReadAhead:
        while self._waiting() % self._batches_per_step:  # so that blocks hold whole steps
            self._single()
        aligned = self._alignment <= self.steps
        return ReadAhead(
            self._singles.iterator,
            self._like,
            self.steps * self._batches_per_step,
            self._batches_per_step,
            into=self._next_step() % self.steps * self._batches_per_step if aligned else 0,
            aligned=aligned,
            endless=self._endless,
        )

    def _next_step(self) -> int:
        """The number of the step that a block pulled now would begin with."""
        return self._current_step() + self._waiting() // self._batches_per_step

    def _timed(self, call: Callable[[], Any]) -> Any:
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


def _shapes(batch: Any) -> list[tf.TensorShape]:
    return [x.shape for x in tf.nest.flatten(batch)]
