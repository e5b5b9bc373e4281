"""A batch as any nest: how many examples it has, and its parts. On the host or traced.

The examples of a batch lie along the first dimension of every tensor in it; scalars (a seed, a
temperature) belong to all of them.
"""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfloss.errors import DataError


class MicroBatches(list):
    """The batches of one step that accumulates gradients, in order. Only passed on."""


def count(batch: Any) -> Any:
    """The number of examples: an int where it is known statically, else an int32 scalar.

    None if no tensor has a first dimension. Raises DataError if static sizes disagree.
    """
    leaves = [leaf for leaf in tf.nest.flatten(batch) if not _is_scalar(leaf)]
    static = {size for size in map(_static_count, leaves) if size is not None}
    if len(static) > 1:
        found = ", ".join(map(str, sorted(static)))
        raise DataError(
            "Can't tell how many examples a batch has: the first dimensions of its tensors "
            f"are {found}. Every tensor of a batch must have the batch as first dimension, or "
            "be a scalar."
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


def part(batch: Any, start: Any, stop: Any) -> Any:
    """The examples from `start` to `stop`; scalars as they are."""

    def cut(leaf):
        if _is_scalar(leaf):
            return leaf
        if isinstance(leaf, tf.SparseTensor):
            rest = tf.cast(leaf.dense_shape[1:], tf.int64)
            begin = tf.concat([[tf.cast(start, tf.int64)], tf.zeros_like(rest)], 0)
            size = tf.concat([[tf.cast(stop - start, tf.int64)], rest], 0)
            return tf.sparse.slice(leaf, begin, size)
        return leaf[start:stop]

    return tf.nest.map_structure(cut, batch)


def bounds(size: Any, parts: int, index: Any) -> tuple[Any, Any]:
    """Where part `index` of `parts` begins and ends: equal sizes, the first ones one more."""
    each, more = size // parts, size % parts
    if isinstance(size, int) and isinstance(index, int):
        return index * each + min(index, more), (index + 1) * each + min(index + 1, more)
    return (
        index * each + tf.minimum(index, more),
        (index + 1) * each + tf.minimum(index + 1, more),
    )


def with_count(batch: Any, size: int) -> Any:
    """The batch, its dense tensors with `size` as their static first dimension."""

    def ensure(leaf):
        dense = isinstance(leaf, tf.Tensor) and leaf.shape.rank
        return tf.ensure_shape(leaf, [size, *leaf.shape[1:]]) if dense else leaf

    return tf.nest.map_structure(ensure, batch)


def split(batch: Any, parts: int) -> list[Any]:
    """A batch on the host in parts; one with fewer examples than parts is not split.

    Raises DataError if its tensors disagree about their number, or none has one.
    """
    size = count(batch)
    if size is None:
        raise DataError("Can't tell how many examples a batch has: it holds only scalars.")
    parts = parts if size >= parts else 1
    return [part(batch, *bounds(int(size), parts, index)) for index in range(parts)]


def leaves(nest: Any, path: str = "") -> list[tuple[str, Any]]:
    """`(path['key'][0], leaf)` of everything in a nest."""
    if isinstance(nest, Mapping):
        return [x for k, v in nest.items() for x in leaves(v, f"{path}[{k!r}]")]
    if isinstance(nest, tuple | list):
        return [x for i, v in enumerate(nest) for x in leaves(v, f"{path}[{i}]")]
    return [(path, nest)]


def _is_scalar(leaf: Any) -> bool:
    if leaf is None:  # tf.data lets it through
        return True
    return not isinstance(leaf, tf.RaggedTensor | tf.SparseTensor) and leaf.shape.rank == 0


def _static_count(leaf: Any) -> int | None:
    if isinstance(leaf, tf.RaggedTensor) or leaf.shape.rank is None:
        # A ragged tensor's static number of rows may be known; eagerly it always is.
        return int(leaf.nrows()) if tf.executing_eagerly() and leaf.shape.rank else None
    return leaf.shape[0]
