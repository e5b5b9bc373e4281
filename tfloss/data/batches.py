"""Opens, cuts and names the tensors of a batch, which is any nest. Host code, or traced.

Which of them hold examples is told by a `tfloss.data.batch_layout.BatchLayout`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfloss import _upstream


class MicroBatches(list[Any]):
    """The batches of one step that accumulates gradients, in order."""


def open_nest(nest: Any, path: str = "") -> tuple[list[tuple[str, Any]], Callable[..., Any]]:
    """Opens a nest, and the extension types in it, down to tensors.

    Args:
      nest: Nest of tensors or of `tf.TypeSpec`s.
      path: Prefix of the paths.

    Returns:
      `(path, leaf)` of each dense, ragged or sparse tensor, None, or other value; and a function
      that packs a sequence of other leaves into such a nest.
    """
    flat = tf.nest.flatten(nest)
    indices = tf.nest.pack_sequence_as(nest, range(len(flat)))
    paths = {index: name for name, index in named_leaves(indices, path)}
    leaves: list[tuple[str, Any]] = []
    inner: list[tuple[int, Callable[..., Any] | None]] = []  # leaves of each, and how to pack them
    for index, one in enumerate(flat):
        fields = _upstream.open_extension_type(one)
        if fields is None:
            leaves.append((paths[index], one))
            inner.append((1, None))
            continue
        opened, pack = open_nest([value for _, value in fields[0]])
        names = dict(enumerate(f"{paths[index]}.{name}" for name, _ in fields[0]))
        for name, value in opened:
            number, rest = name[1:].split("]", 1)  # "[1]" or "[1].field"
            leaves.append((names[int(number)] + rest, value))
        inner.append((len(opened), lambda new, pack=pack, build=fields[1]: build(pack(new))))

    def packed(new: Sequence[Any]) -> Any:
        values, rest = [], list(new)
        for count, build in inner:
            mine, rest = rest[:count], rest[count:]
            values.append(mine[0] if build is None else build(mine))
        return tf.nest.pack_sequence_as(nest, values)

    return leaves, packed


def has_rows(leaf: Any) -> bool:
    """Whether a leaf, or its spec, has a first dimension. A tensor of unknown rank has one."""
    kinds = tf.RaggedTensor, tf.SparseTensor, tf.RaggedTensorSpec, tf.SparseTensorSpec
    if isinstance(leaf, kinds):
        return True
    return isinstance(leaf, tf.Tensor | tf.TensorSpec) and leaf.shape.rank != 0


def static_rows(leaf: Any) -> int | None:
    """The first dimension of a leaf or spec that has one, if it is known statically."""
    if leaf.shape.rank is None:
        return None
    if isinstance(leaf, tf.RaggedTensor) and tf.executing_eagerly():
        return int(leaf.nrows())
    return leaf.shape[0]


def rows(leaf: Any) -> Any:
    """The first dimension of a leaf that has one: an int if it is known, else an int32 scalar."""
    static = static_rows(leaf)
    if static is not None:
        return static
    if isinstance(leaf, tf.RaggedTensor):
        return tf.cast(leaf.nrows(), tf.int32)
    if isinstance(leaf, tf.SparseTensor):
        return tf.cast(leaf.dense_shape[0], tf.int32)
    return tf.shape(leaf)[0]


def slice_rows(leaf: Any, start: Any, stop: Any) -> Any:
    """Returns the rows from `start` up to, but not including, `stop`.

    Args:
      leaf: Dense, ragged or sparse tensor.
      start: Index of the first row, an int or an int32 scalar.
      stop: Index after the last row.
    """
    if isinstance(leaf, tf.SparseTensor):
        rest = tf.cast(leaf.dense_shape[1:], tf.int64)
        begin = tf.concat([[tf.cast(start, tf.int64)], tf.zeros_like(rest)], 0)
        size = tf.concat([[tf.cast(stop - start, tf.int64)], rest], 0)
        found = tf.sparse.slice(leaf, begin, size)
        if not leaf.shape[1:].is_fully_defined():
            return found
        # The slice itself forgets the static dimensions.
        inner: Any = leaf.shape[1:].as_list()
        shape = tf.concat([found.dense_shape[:1], tf.constant(inner, tf.int64)], 0)
        return tf.SparseTensor(found.indices, found.values, shape)
    return leaf[start:stop]


def slice_examples(batch: Any, start: Any, stop: Any) -> Any:
    """Returns a nest in which every tensor that has rows is cut as by `slice_rows`."""
    leaves, pack = open_nest(batch)
    return pack([slice_rows(x, start, stop) if has_rows(x) else x for _, x in leaves])


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
    """Returns `(path, leaf)` of each leaf in dicts, lists, tuples and `attrs` classes.

    Args:
      nest: Any nest.
      path: Prefix of the paths. A path looks like `batch['boxes'][0]` or `batch.boxes`.
    """
    if isinstance(nest, Mapping):
        parts = [(f"[{key!r}]", value) for key, value in nest.items()]
    elif isinstance(nest, tuple) and (names := getattr(nest, "_fields", None)):
        parts = [(f".{name}", getattr(nest, name)) for name in names]
    elif isinstance(nest, tuple | list):
        parts = [(f"[{index}]", value) for index, value in enumerate(nest)]
    elif hasattr(type(nest), "__attrs_attrs__"):
        fields: Any = type(nest).__attrs_attrs__
        parts = [(f".{field.name}", getattr(nest, field.name)) for field in fields]
    elif tf.nest.is_nested(nest):
        parts = [(f"[{index}]", value) for index, value in enumerate(tf.nest.flatten(nest))]
    else:
        return [(path, nest)]
    return [leaf for part, value in parts for leaf in named_leaves(value, path + part)]
