"""Pulls batches from an iterator and stacks them, inside `tf.data`. Traced code."""

import functools
from typing import Any

import tensorflow as tf

from tfloss import _upstream
from tfloss.data.staging_area import StagingArea

MAX_SECONDS = 0.25  # for pulling one block
_UNROLLED = 5  # the most batches in one iteration of a loop without checks


class PullBlock:
    """Pulls the next block: as many batches as remain until the next place where calls are cut.

    Endless data of one shape are pulled without asking whether they end, which takes a third of the
    time. That starts once a block has shown that batches arrive quickly enough, since such a block
    can't be cut short.

    Args:
      iterator: Iterator to pull from.
      template: A batch of the shape that is stacked.
      size: Number of batches in a full block.
      batches_per_step: Number of batches in a step.
      aligned: Whether a block that was cut short is followed by the rest of it.
      endless: Whether the data set is known to never end.

    Attributes:
      offset: Int32 variable: the offset of the next batch within its block.
      untimed: Bool variable: whether the next full block is pulled without a time limit.
      failed: Bool variable: whether the iterator failed in the last call, or a call is in progress.
        After an error, `take_kept` returns the batches before it.
      kept: The batches of the call in progress: an error leaves those before it here.
    """

    def __init__(
        self,
        iterator: Any,
        template: Any,
        size: int,
        batches_per_step: int = 1,
        *,
        aligned: bool = False,
        endless: bool = False,
    ):
        """Creates the variables. Host code."""
        self._iterator, self._template = iterator, template
        self._size, self._batches_per_step, self._aligned = size, batches_per_step, aligned
        self.offset = cpu_variable(0)
        shapes = [x.shape for x in tf.nest.flatten(iterator.element_spec)]
        self._one_shape = endless and all(shape.is_fully_defined() for shape in shapes)
        # Op determinism forbids reading a clock, so no block is cut short there.
        self._reads_clock = not _upstream.op_determinism_enabled()
        self.untimed, self.failed = cpu_variable(not self._reads_clock), cpu_variable(False)
        self.kept = StagingArea(template, size)

    def __call__(self) -> tuple[Any, Any, tf.Tensor]:
        """Pulls a block.

        Returns:
          The stacked batches, nest of tensors [size, ...]; the remainder: a batch of another shape
          that came after them, or zeros; and int32 [3]: the number of stacked batches, whether
          there is a remainder, and whether the data ended.
        """
        started = self.failed.assign(True)
        with tf.control_dependencies([started]):
            began = tf.timestamp() if self._reads_clock else None
            offset = self.offset.read_value()
        capacity = self._size - offset
        with tf.control_dependencies([started] if began is None else [began]):
            checked = functools.partial(self._pull_checked, capacity, began)
            full = self.untimed.read_value() & tf.equal(capacity, self._size)
            pulled = tf.cond(full, self._pull_full, checked) if self._one_shape else checked()
        count, has_remainder, _ = tf.unstack(pulled[2])
        with tf.control_dependencies([count]):
            changes: list[Any] = [self.failed.assign(False)]
            if self._aligned:
                changes.append(self.offset.assign((offset + count + has_remainder) % self._size))
            if self._one_shape and began is not None:
                each = (tf.timestamp() - began) / tf.cast(tf.maximum(count, 1), tf.float64)
                changes.append(self.untimed.assign(each * self._size < MAX_SECONDS))
        with tf.control_dependencies(changes):
            return *pulled[:2], tf.identity(pulled[2])

    def _pull_full(self) -> tuple[Any, Any, tf.Tensor]:
        """Pulls a full block, however long it takes."""
        # A few batches in each iteration: tracing hundreds of them would take a second.
        each = max(n for n in range(1, _UNROLLED + 1) if self._size % n == 0)

        def pull(first: tf.Tensor, arrays: list[Any]) -> tuple[tf.Tensor, list[Any]]:
            kept: list[Any] = []
            for i in range(each):
                with tf.control_dependencies(kept):  # an error finds all batches before it kept
                    batch = _upstream.next_in_this_thread(self._iterator)
                kept = [self.kept.put(batch)]
                leaves = tf.nest.flatten(batch)
                arrays = [
                    array.write(first + i, leaf) for array, leaf in zip(arrays, leaves, strict=True)
                ]
            with tf.control_dependencies(kept):
                return first + each, arrays

        start = tf.constant(0), self.kept.empty_arrays()
        _, arrays = tf.while_loop(
            lambda first, _: first < self._size, pull, start, parallel_iterations=1
        )
        block = self.kept.block_of(arrays)
        with tf.control_dependencies(tf.nest.flatten(block)):
            cleared = self.kept.clear()
        remainder = empty_block(self._iterator, self._template)[1]
        with tf.control_dependencies([cleared]):
            return block, remainder, tf.constant([self._size, 0, 0])

    def _pull_checked(
        self, capacity: tf.Tensor, began: tf.Tensor | None
    ) -> tuple[Any, Any, tf.Tensor]:
        """Pulls batches of the template's shape until the time limit.

        Args:
          capacity: Upper bound on the number of batches, an int32 scalar.
          began: When pulling began, or None for no time limit.
        """
        iterator, batches_per_step = self._iterator, self._batches_per_step
        specs = tf.nest.flatten(iterator.element_spec)
        shapes = [x.shape for x in tf.nest.flatten(self._template)]
        pack = functools.partial(tf.nest.pack_sequence_as, iterator.element_spec)
        zeros = [tf.zeros([d or 0 for d in spec.shape], spec.dtype) for spec in specs]

        def more(count: Any, fits: Any, *_: Any) -> Any:
            wanted = fits & (count < capacity)
            if began is None:
                return wanted
            late: Any = tf.timestamp() - began > MAX_SECONDS
            return wanted & ~(late & (count % batches_per_step == 0) & (count > 0))

        def pull(count: Any, *_: Any) -> tuple[Any, ...]:
            found = iterator.get_next_as_optional()
            there = found.has_value()
            values = tf.cond(there, lambda: tf.nest.flatten(found.get_value()), lambda: zeros)
            same = [tf.reduce_all(tf.shape(v) == s) for v, s in zip(values, shapes, strict=True)]
            fits = tf.cond(there & tf.reduce_all(same), lambda: keep(values), lambda: False)
            return count + tf.cast(fits, tf.int32), fits, there & ~fits, values

        def keep(values: list[Any]) -> tf.Tensor:
            pairs = zip(values, shapes, strict=True)
            kept = self.kept.put([tf.ensure_shape(value, shape) for value, shape in pairs])
            with tf.control_dependencies([kept]):
                return tf.constant(True)

        scalar = tf.TensorShape([])
        count, fits, has_remainder, last = tf.while_loop(
            more,
            pull,
            [tf.constant(0), tf.constant(True), tf.constant(False), zeros],
            shape_invariants=[scalar, scalar, scalar, [spec.shape for spec in specs]],
            parallel_iterations=1,
        )
        flags = [tf.cast(one, tf.int32) for one in (has_remainder, ~fits & ~has_remainder)]
        return self.kept.take(count), pack(last), tf.stack([count, *flags])

    def take_kept(self) -> tuple[Any, int]:
        """Takes the batches that were pulled before an error. Host code, after a call has failed.

        Returns:
          A block of these batches, and their number.
        """
        count = self.kept.count()
        return self.kept.take(count), count


def empty_block(iterator: Any, template: Any) -> tuple[Any, Any, tf.Tensor]:
    """Returns what `PullBlock` returns when it pulls nothing. Traced, in `tf.data`.

    Args:
      iterator: Iterator that isn't pulled from.
      template: A batch of the shape that is stacked.
    """
    # A block without batches: TensorFlow computes zeros of up to 10 MB when it optimizes the
    # function, and keeps several copies.
    stacked = tf.nest.map_structure(lambda one: tf.zeros([0, *one.shape], one.dtype), template)
    remainder = tf.nest.map_structure(
        lambda one: tf.zeros([d or 0 for d in one.shape], one.dtype), iterator.element_spec
    )
    return stacked, remainder, tf.constant([0, 0, 0])


def cpu_variable(value: Any) -> tf.Variable:
    """Returns a variable on the CPU, where `tf.data` runs."""
    with tf.device("CPU:0"):
        return tf.Variable(tf.constant(value), trainable=False)
