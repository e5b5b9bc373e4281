"""Keeps the batches of a block in order while it is pulled, so that an error loses none. Traced.

A queue would do the same. But its ops are asynchronous, so that the ops after each of them run in
another thread: for small batches, that takes a third of the time of reading them.
"""

import itertools
from typing import Any

import tensorflow as tf

_numbers = itertools.count()


class StagingArea:
    """Batches of one shape, first in, first out.

    Args:
      template: A batch.
      size: Number of batches in a block.
    """

    def __init__(self, template: Any, size: int):
        """Names the area. Host code."""
        self._template, self._size = template, size
        leaves = tf.nest.flatten(template)
        self._shapes = [leaf.shape for leaf in leaves]
        self._area: dict[str, Any] = {
            "dtypes": [leaf.dtype for leaf in leaves],
            "shared_name": f"tfloss_staging_area_{next(_numbers)}",
        }

    def put(self, batch: Any) -> Any:
        """Adds a batch: a nest of tensors, or its leaves. Returns an op."""
        leaves = tf.nest.flatten(batch)
        return tf.raw_ops.Stage(values=leaves, shared_name=self._area["shared_name"])

    def take(self, count: Any) -> Any:
        """Takes batches out. Returns a block [size, ...], which zeros fill up. Traced, or host.

        Args:
          count: Number of batches, an int or an int32 scalar. There must be as many.
        """

        def move(i: Any, arrays: list[Any]) -> tuple[Any, list[Any]]:
            leaves = tf.raw_ops.Unstage(**self._area)
            return i + 1, [a.write(i, leaf) for a, leaf in zip(arrays, leaves, strict=True)]

        start = [0, self.empty_arrays()]
        with tf.device("CPU:0"):  # another device has another area of this name
            _, arrays = tf.while_loop(lambda i, _: i < count, move, start, parallel_iterations=1)
        return self.block_of(arrays)

    def empty_arrays(self) -> list[Any]:
        """Returns a `tf.TensorArray` for each leaf of the batches of a block. Traced, or host."""
        pairs = zip(self._area["dtypes"], self._shapes, strict=True)
        return [tf.TensorArray(x, self._size, element_shape=shape) for x, shape in pairs]

    def block_of(self, arrays: list[Any]) -> Any:
        """Returns the block of arrays. Zeros take the place of what was not written."""
        return tf.nest.pack_sequence_as(self._template, [one.stack() for one in arrays])

    def count(self) -> int:
        """Returns the number of batches. Host code."""
        with tf.device("CPU:0"):
            return int(tf.raw_ops.StageSize(**self._area))

    def clear(self) -> Any:
        """Drops all batches. Returns an op. Traced, or host."""
        with tf.device("CPU:0"):
            return tf.raw_ops.StageClear(**self._area)
