"""Counts, cuts and names the tensors of a batch, which is any nest. Host code, or traced.

The examples of a batch lie along the first dimension of each of its tensors. Scalars, such as a
seed or a temperature, belong to all examples.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfloss.errors import DataError


class MicroBatches(list[Any]):
    """The batches of one step that accumulates gradients, in order."""


def count(batch: Any) -> Any:
    """Returns the number of examples in a batch.

    Args:
      batch: Nest of tensors.

    Returns:
      An int if the number is known statically, else an int32 scalar. None if no tensor has a first
      dimension.

    Raises:
      DataError: The static first dimensions differ.
    """
    leaves = [leaf for leaf in tf.nest.flatten(batch) if not _is_scalar(leaf)]
    static = {size for size in map(_static_count, leaves) if size is not None}
    if len(static) > 1:
        found = ", ".join(map(str, sorted(static)))
        raise DataError(
            "The number of examples in a batch is unclear: the first dimensions of its tensors are "
            f"{found}. Give every tensor the batch as its first dimension, or make it a scalar."
        )
    if not leaves:
        return None
    if static:
        return static.pop()
    first = leaves[0]
    if isinstance(first, tf.RaggedTensor):
        return tf.cast(first.nrows(), tf.int32)
    if isinstance(first, tf.SparseTensor):
        return tf.cast(first.dense_shape[0], tf.int32)
    return tf.shape(first)[0]


def slice_examples(batch: Any, start: Any, stop: Any) -> Any:
    """Returns the examples from `start` up to, but not including, `stop`. Scalars are kept.

    Args:
      batch: Nest of tensors.
      start: Index of the first example, an int or an int32 scalar.
      stop: Index after the last example.
    """

    def cut(leaf: Any) -> Any:
        if _is_scalar(leaf):
            return leaf
        if isinstance(leaf, tf.SparseTensor):
            rest = tf.cast(leaf.dense_shape[1:], tf.int64)
            begin = tf.concat([[tf.cast(start, tf.int64)], tf.zeros_like(rest)], 0)
            size = tf.concat([[tf.cast(stop - start, tf.int64)], rest], 0)
            return tf.sparse.slice(leaf, begin, size)
        return leaf[start:stop]

    return tf.nest.map_structure(cut, batch)


def split_bounds(size: Any, parts: int, index: Any) -> tuple[Any, Any]:
    """Returns start and stop of one part of a batch that is split evenly.

    The first `size % parts` parts have one example more than the others.

    Args:
      size: Number of examples, an int or an int32 scalar.
      parts: Number of parts.
      index: Index of the part, an int or an int32 scalar.
    """
    each, more = size // parts, size % parts
    if isinstance(size, int) and isinstance(index, int):
        return index * each + min(index, more), (index + 1) * each + min(index + 1, more)
    return (
        index * each + tf.minimum(index, more),
        (index + 1) * each + tf.minimum(index + 1, more),
    )


def with_static_count(batch: Any, size: int) -> Any:
    """Returns the batch with `size` as the static first dimension of its dense tensors."""

    def ensure(leaf: Any) -> Any:
        dense = isinstance(leaf, tf.Tensor) and leaf.shape.rank
        return tf.ensure_shape(leaf, [size, *leaf.shape[1:]]) if dense else leaf

    return tf.nest.map_structure(ensure, batch)


def split(batch: Any, parts: int) -> list[Any]:
    """Splits a batch evenly. Host code.

    Args:
      batch: Nest of tensors.
      parts: Number of parts. A batch with fewer examples is not split.

    Returns:
      The parts, in order.

    Raises:
      DataError: The first dimensions differ, or all tensors are scalars.
    """
    size = count(batch)
    if size is None:
        raise DataError(
            "The number of examples in a batch is unclear: it holds only scalars. Give at least "
            "one tensor the batch as its first dimension."
        )
    parts = parts if size >= parts else 1
    return [slice_examples(batch, *split_bounds(int(size), parts, index)) for index in range(parts)]


def equal(a: Any, b: Any) -> bool:
    """Returns whether two arrays are equal; NaN is equal to NaN. Host code.

    Args:
      a: NumPy array or tensor.
      b: Another one.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return bool(a.tobytes() == b.tobytes() if a.dtype != object else np.array_equal(a, b))


def named_leaves(nest: Any, path: str = "") -> list[tuple[str, Any]]:
    """Returns `(path, leaf)` of each leaf in dicts, lists and tuples.

    Args:
      nest: Any nest.
      path: Prefix of the paths. A path looks like `batch['boxes'][0]`.
    """
    if isinstance(nest, Mapping):
        return [x for k, v in nest.items() for x in named_leaves(v, f"{path}[{k!r}]")]
    if isinstance(nest, tuple | list):
        return [x for i, v in enumerate(nest) for x in named_leaves(v, f"{path}[{i}]")]
    return [(path, nest)]


def _is_scalar(leaf: Any) -> bool:
    if leaf is None:  # tf.data allows None in a batch
        return True
    return not isinstance(leaf, tf.RaggedTensor | tf.SparseTensor) and leaf.shape.rank == 0


def _static_count(leaf: Any) -> int | None:
    if isinstance(leaf, tf.RaggedTensor) or leaf.shape.rank is None:
        # A ragged tensor's static number of rows may be known; eagerly it always is.
        return int(leaf.nrows()) if tf.executing_eagerly() and leaf.shape.rank else None
    return leaf.shape[0]
