"""Pulls batches from an iterator and stacks them, inside `tf.data`, ahead of who takes them.

`tfloss.data.stacked_batches` says what for.
"""

import contextlib
import dataclasses
import functools
import os
from typing import Any

import tensorflow as tf

from tfloss import _upstream

MOST_SECONDS = 0.25  # of gathering a block
_UNKNOWN: Any = None  # as a shape


@dataclasses.dataclass(frozen=True)
class Pulled:
    """What was pulled next.

    Attributes:
      block: tensors [batches of a full block, ...].
      count: batches that are in it.
      odd: a batch after those, of another size; or None.
      ended: whether there is none after these.
    """

    block: Any
    count: int
    odd: Any
    ended: bool

    def __bool__(self) -> bool:
        """Whether it is anything; if not, pulling waits."""
        return self.count > 0 or self.odd is not None or self.ended


class ReadAhead:
    """Pulls the next block of an iterator while the one before is used. Host code.

    Args: as those of `Pull`.
    """

    def __init__(self, iterator: Any, first: Any, size: int, per_step: int = 1, **how: Any):
        options = tf.data.Options()
        options.autotune.enabled = False  # closing the iterator would wait for its thread
        # Threads of its own, since `Pull` blocks one that what it waits for may need.
        options.threading.private_threadpool_size = max(4, 2 + (os.cpu_count() or 1))
        options.threading.max_intra_op_parallelism = 1  # those threads are the training step's
        self._held = _cpu_variable(False)
        pull = Pull(iterator, first, size, per_step, **how)
        nothing = functools.partial(_nothing, iterator, first, size)
        blocks = tf.data.Dataset.range(tf.int64.max).map(
            _plain(lambda _: tf.cond(self._held, nothing, pull))
        )
        self._blocks = iter(blocks.prefetch(1).with_options(options))

    def next(self) -> Pulled:
        """Waits for it. Raises what the iterator raised; the call after that goes on behind it."""
        block, odd, found = next(self._blocks)
        count, is_odd, ended = found.numpy().tolist()
        return Pulled(block, count, odd if is_odd else None, bool(ended))

    def hold(self, hold: bool) -> None:
        """Whether pulling is to wait. It does when `next` has given nothing."""
        self._held.assign(hold)

    def stop(self) -> None:
        """Drops what was pulled, and pulls no more."""
        self.hold(True)
        while True:
            with contextlib.suppress(tf.errors.OpError):
                if not self.next():
                    return


class Singles:
    """An iterator's batches one by one; an error comes in its place. Host code.

    Attributes:
      iterator: what they are taken from.
    """

    def __init__(self, iterator: Any):
        self.iterator = iterator
        self._due: Exception | None = None
        self._sought: Exception | None = None
        self._left = 0

    def next(self) -> Any:
        """Takes one. Raises what the iterator raises, or StopIteration."""
        if self._due is not None:
            error, self._due = self._due, None
            raise error
        try:
            batch = next(self.iterator)
        except Exception as error:
            sought, self._sought = self._sought, None
            if isinstance(error, StopIteration) and sought is not None:
                raise sought from None
            raise
        self._left -= 1
        if self._sought is not None and self._left == 0:
            self._due, self._sought = self._sought, None
        return batch

    def postpone(self, error: Exception) -> None:
        """Raises an error in the next call, not now."""
        self._due = error

    def seek(self, iterator: Any, error: Exception, most: int) -> None:
        """Goes on from where another iterator is, which is before an error.

        It is raised in any case, though reading again may go well: where the data end, or behind
        the last batch that it can have been.
        """
        self.iterator, self._sought, self._left = iterator, error, most

    @property
    def expected(self) -> bool:
        """Whether an error is still to be raised."""
        return self._due is not None or self._sought is not None


class Pull:
    """Pulls the next block: as many batches as there are to where calls are cut. Traced.

    Endless data of one shape are pulled without asking for their end, in a third of the time,
    once a block has shown that they come quickly enough for that: such a block can't be cut short.

    Args:
      iterator: what is pulled from.
      first: a batch that was.
      size: batches in a full block.
      per_step: batches that a step takes.
      into: so many batches before the first one, a block would have begun.
      aligned: whether blocks that were cut short are followed by what is left of them.
      endless: whether the data are known to never end.

    Attributes:
      quick: a bool variable: whether the next full block is pulled without looking at the clock.
    """

    def __init__(
        self,
        iterator: Any,
        first: Any,
        size: int,
        per_step: int = 1,
        *,
        into: int = 0,
        aligned: bool = False,
        endless: bool = False,
    ):
        self._iterator, self._first = iterator, first
        self._size, self._per_step, self._aligned = size, per_step, aligned
        self._into = _cpu_variable(into)
        shapes = [x.shape for x in tf.nest.flatten(iterator.element_spec)]
        self._one_shape = endless and all(shape.is_fully_defined() for shape in shapes)
        # Op determinism refuses to look at a clock, so nothing is cut short there.
        self._timed = not _upstream.op_determinism_enabled()
        self.quick = _cpu_variable(not self._timed)

    def __call__(self) -> tuple:
        """Traced: a stack of batches, another one if it came and doesn't fit, and int32 [3]: how
        many are stacked, whether there is that other one, whether the data ended."""
        began = tf.timestamp() if self._timed else None
        into = self._into.read_value()
        room = self._size - into
        with tf.control_dependencies([] if began is None else [began]):
            some = functools.partial(self._some, room, began)
            whole = self.quick.read_value() & tf.equal(room, self._size)
            block = tf.cond(whole, self._whole, some) if self._one_shape else some()
        count, odd, _ = tf.unstack(block[2])
        changes = []
        with tf.control_dependencies([count]):
            if self._aligned:
                changes.append(self._into.assign((into + count + odd) % self._size))
            if self._one_shape and began is not None:
                each = (tf.timestamp() - began) / tf.cast(tf.maximum(count, 1), tf.float64)
                changes.append(self.quick.assign(each * self._size < MOST_SECONDS))
        with tf.control_dependencies(changes):
            return *block[:2], tf.identity(block[2])

    def _whole(self) -> tuple:
        """Traced: a full block, however long it takes."""
        found = [_upstream.next_in_this_thread(self._iterator) for _ in range(self._size)]
        stacked = tf.nest.map_structure(lambda *each: tf.stack(each), *found)
        odd = _nothing(self._iterator, found[0], self._size)[1]
        return stacked, odd, tf.constant([self._size, 0, 0])

    def _some(self, room: tf.Tensor, began: tf.Tensor | None) -> tuple:
        """Traced: as many of the first one's shape as there are, and come early enough."""
        iterator, per_step = self._iterator, self._per_step
        specs = tf.nest.flatten(iterator.element_spec)
        shapes = [x.shape for x in tf.nest.flatten(self._first)]
        pack = functools.partial(tf.nest.pack_sequence_as, iterator.element_spec)
        nothing = [tf.zeros([d or 0 for d in one.shape], one.dtype) for one in specs]

        def more(count, fits, *_):
            go_on = fits & (count < room)
            if began is None:
                return go_on
            late = tf.timestamp() - began > MOST_SECONDS
            return go_on & ~(late & (count % per_step == 0) & (count > 0))

        def pull(count, fits, odd, last, arrays):
            found = iterator.get_next_as_optional()
            there = found.has_value()
            values = tf.cond(there, lambda: tf.nest.flatten(found.get_value()), lambda: nothing)
            same = [tf.reduce_all(tf.shape(v) == s) for v, s in zip(values, shapes, strict=True)]
            fits = there & tf.reduce_all(same)
            arrays = tf.cond(fits, lambda: _written(arrays, count, values, shapes), lambda: arrays)
            return count + tf.cast(fits, tf.int32), fits, there & ~fits, values, arrays

        arrays = [
            tf.TensorArray(one.dtype, self._size, element_shape=shape)
            for one, shape in zip(specs, shapes, strict=True)
        ]
        any_shape = [tf.TensorShape(_UNKNOWN)] * len(arrays)
        scalar = tf.TensorShape([])
        count, fits, odd, last, arrays = tf.while_loop(
            more,
            pull,
            [tf.constant(0), tf.constant(True), tf.constant(False), nothing, arrays],
            shape_invariants=[scalar, scalar, scalar, [one.shape for one in specs], any_shape],
            parallel_iterations=1,
        )
        flags = [tf.cast(one, tf.int32) for one in (odd, ~fits & ~odd)]
        return pack([array.stack() for array in arrays]), pack(last), tf.stack([count, *flags])


def _cpu_variable(value: Any) -> tf.Variable:
    """Where `tf.data` runs."""
    with tf.device("CPU:0"):
        return tf.Variable(tf.constant(value), trainable=False)


def _nothing(iterator: Any, first: Any, size: int) -> tuple:
    """Traced, in `tf.data`: what `Pull` gives when it pulls nothing."""
    stacked = tf.nest.map_structure(lambda one: tf.zeros([size, *one.shape], one.dtype), first)
    odd = tf.nest.map_structure(
        lambda one: tf.zeros([d or 0 for d in one.shape], one.dtype), iterator.element_spec
    )
    return stacked, odd, tf.constant([0, 0, 0])


_plain = tf.autograph.experimental.do_not_convert


def _written(arrays: list, index: tf.Tensor, values: list, shapes: list) -> list:
    return [
        array.write(index, tf.ensure_shape(value, shape))
        for array, value, shape in zip(arrays, values, shapes, strict=True)
    ]
