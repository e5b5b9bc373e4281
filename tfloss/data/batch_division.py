"""Divides a batch into one part for each replica or worker. Host code, or traced.

A batch is divided as its `BatchLayout` says, or refused by a `DataError` that names its tensors.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfloss.data import batches
from tfloss.data.batch_layout import UNCLEAR, BatchLayout, cure, listed
from tfloss.errors import DataError

_INDIVISIBLE = "A batch can't be divided"
_ASSERTED = re.compile(rf"assertion failed: \[((?:{UNCLEAR}|{_INDIVISIBLE}).*)\]")
_NONE = type(tf.type_spec_from_value(None))


def check_divisible(layout: BatchLayout, spec: Any, parts: int) -> None:
    """Checks, as far as specs tell, that batches can be divided. Host code.

    Args:
      layout: Layout of the batches.
      spec: Nest of `tf.TypeSpec`s of a batch, or an eager batch.
      parts: Number of parts.

    Raises:
      DataError: They can't be divided. The message names the tensors and their first dimensions.
    """
    if parts == 1:
        return
    for path, leaf in batches.open_nest(spec, "batch")[0]:
        scalar = leaf is None or isinstance(leaf, _NONE | tf.Tensor | tf.TensorSpec)
        if not (scalar or batches.has_rows(leaf) or layout.is_whole(path)):
            kind = type(leaf).__name__.removesuffix("Spec").strip("_")
            raise DataError(
                f"{_INDIVISIBLE} over {parts} replicas: {path} is a {kind}, which has no examples. "
                "Leave it out of the batch, or make tensors of it."
            )
    sizes = layout.static_sizes(spec)
    known = {path: size for path, size in sizes.items() if size is not None}
    _check(known, layout.counting(known), parts)


def part_of(
    layout: BatchLayout, batch: Any, parts: int, index: Any, *, static: bool = False
) -> Any:
    """Returns one part of a batch. Host code, or traced.

    Args:
      layout: Layout of the batch.
      batch: Nest of tensors.
      parts: Number of parts.
      index: Index of the part, an int or an int32 scalar.
      static: Whether parts that are known to have the same size get static shapes.

    Raises:
      DataError: The batch can't be divided. If only the values of traced tensors tell so,
        TensorFlow's error is raised when they are computed; see `data_error`.
    """
    leaves, pack = batches.open_nest(batch, "batch")
    found, divided = dict(leaves), layout.divided(leaves)
    sizes = {path: batches.rows(leaf) for path, leaf in divided}
    counting = layout.counting(sizes)
    with tf.control_dependencies(_checks(sizes, counting, parts)):
        number = next((sizes[path] for path in counting or sizes), 0)
        common = batches.split_bounds(number, parts, index)
        for path, leaf in divided:
            bounds = _bounds(sizes[path], number, common, parts, index) if counting else common
            found[path] = batches.slice_rows(leaf, *bounds)
            if static and _divides(parts, number, sizes[path]):
                found[path] = _with_static_rows(found[path], sizes[path] // parts)
    return pack([found[path] for path, _ in leaves])


def split(layout: BatchLayout, batch: Any, parts: int) -> list[Any]:
    """Returns the parts of a batch, in order. Host code.

    Args:
      layout: Layout of the batch.
      batch: Nest of eager tensors.
      parts: Number of parts. A batch with fewer examples is not split.

    Raises:
      DataError: The batch can't be divided.
    """
    check_divisible(layout, batch, parts)
    count = layout.count(batch)
    if parts == 1 or count is None or count < parts:
        return [batch]
    return [part_of(layout, batch, parts, index) for index in range(parts)]


def assert_comparable(layout: BatchLayout, sizes: Sequence[Mapping[str, Any]]) -> list[tf.Tensor]:
    """Asserts that the numbers of examples of several batches can be compared. Traced.

    Args:
      layout: Layout of the batches.
      sizes: For each batch, the result of `BatchLayout.sizes`.

    Raises:
      DataError: They can't be, and all sizes are known statically.
    """
    if all(isinstance(size, int) for one in sizes for size in one.values()):
        if problem := layout.unclear(sizes):
            raise DataError(problem)
        return []
    if layout.counting(sizes[0]) or len(sizes[0]) < 2:
        return []
    each = tf.cast(tf.stack([tf.stack(list(one.values())) for one in sizes]), tf.int64)
    sums, columns = tf.reduce_sum(each, 1, keepdims=True), tf.reduce_sum(each, 0, keepdims=True)
    text = layout.unclear_text([dict.fromkeys(one, "<size>") for one in sizes])
    numbers = [size for one in sizes for size in one.values()]
    return [_assertion(tf.equal(each * tf.reduce_sum(each), sums * columns), text, numbers)]


def data_error(error: BaseException) -> DataError | None:
    """Returns the error that a failed assertion of this module stands for, or None. Host code."""
    found = _ASSERTED.search(str(error).replace("\\'", "'"))  # as TensorFlow quotes strings
    return None if found is None else DataError(found.group(1))


def _check(sizes: Mapping[str, int], counting: Sequence[str], parts: int) -> None:
    """Raises DataError if a batch of these sizes can't be divided."""
    number = next((sizes[path] for path in counting or sizes), 0)
    same = all(sizes[path] == number for path in counting or sizes)
    if not same or (counting and not all(_divisible(x, number, parts) for x in sizes.values())):
        raise DataError(_text(sizes, counting, parts))


def _checks(sizes: Mapping[str, Any], counting: Sequence[str], parts: int) -> list[tf.Tensor]:
    """Does what `_check` does, or returns an assertion for what only values tell."""
    if all(isinstance(size, int) for size in sizes.values()):
        _check(sizes, counting, parts)
        return []
    if len(sizes) < 2:
        return []
    number = sizes[next(iter(counting or sizes))]
    tests = [tf.equal(sizes[path], number) for path in counting or sizes]
    if counting:
        tests += [tf.convert_to_tensor(_divisible(x, number, parts)) for x in sizes.values()]
    text = _text(dict.fromkeys(sizes, "<size>"), counting, parts)
    return [_assertion(tf.stack(tests), text, list(sizes.values()))]


def _text(sizes: Mapping[str, Any], counting: Sequence[str], parts: int) -> str:
    if not counting:
        return (
            f"{UNCLEAR}, so the batch can't be divided over {parts} replicas: "
            f"{listed(sizes)}. {cure(sizes)} One graph or the like is for one replica."
        )
    return (
        f"{_INDIVISIBLE} over {parts} replicas: its first dimensions are {listed(sizes)}, and "
        f"{' and '.join(counting)} counts the examples. Each of the others must be a multiple of "
        f"that number, or both must be multiples of {parts}. Choose other sizes, or declare what "
        "every replica needs with BatchLayout(whole=...)."
    )


def _assertion(conditions: tf.Tensor, text: str, sizes: Sequence[Any]) -> tf.Tensor:
    """Asserts conditions. The text, with the sizes in place of `<size>`, is made if one fails."""

    def fail() -> tf.Tensor:
        message = tf.strings.format(text, tuple(sizes), placeholder="<size>")
        with tf.control_dependencies([tf.debugging.Assert(False, [message])]):
            return tf.constant(False)

    return tf.cond(tf.reduce_all(conditions), lambda: tf.constant(True), fail)


def _divisible(size: Any, number: Any, parts: int) -> Any:
    """Whether a tensor with `size` rows can be divided where the batch has `number` examples."""
    if isinstance(size, int) and isinstance(number, int):
        return _divides(parts, number, size) or size == size // max(number, 1) * number
    multiple = tf.equal(size // tf.maximum(number, 1) * number, size)
    return _even(size, number, parts) | multiple


def _bounds(size: Any, number: Any, common: tuple[Any, Any], parts: int, index: Any) -> Any:
    """Start and stop of a tensor with `size` rows, where those of the examples are `common`."""
    start, stop = common
    if isinstance(size, int) and isinstance(number, int):
        if _divides(parts, number, size):
            return index * (size // parts), (index + 1) * (size // parts)
        each = size // max(number, 1)
        return start * each, stop * each
    even, each = _even(size, number, parts), size // tf.maximum(number, 1)
    return (
        tf.where(even, index * (size // parts), start * each),
        tf.where(even, (index + 1) * (size // parts), stop * each),
    )


def _divides(parts: int, *sizes: Any) -> bool:
    return all(isinstance(size, int) and size % parts == 0 for size in sizes)


def _even(size: Any, number: Any, parts: int) -> tf.Tensor:
    return tf.equal(number % parts, 0) & tf.equal(size % parts, 0)


def _with_static_rows(leaf: Any, size: int) -> Any:
    return tf.ensure_shape(leaf, [size, *leaf.shape[1:]]) if isinstance(leaf, tf.Tensor) else leaf
