"""Examples by number: what a `Source` takes its batches from. Arrays, and any Python sequence."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfloss.data import batches
from tfloss.errors import DataError

LARGE = 16_384  # bytes

_plain = tf.autograph.experimental.do_not_convert


class Arrays:
    """Examples along the first dimension of every array of a nest, kept once, on the host.

    Args:
      nest: arrays or tensors in any nest of dicts and tuples; a list is an array.

    Attributes:
      alone: whether one example is taken as cheaply as a batch divided by its size.
      decode: makes an example of what `take` found, or None if nothing is to be done.

    Raises:
      DataError: names the arrays whose first dimensions differ, or that have none.
    """

    alone = True
    decode: Callable[[Any], Any] | None = None

    def __init__(self, nest: Any):
        with tf.device("CPU:0"):
            self._nest = _nest(nest, tf.convert_to_tensor)
        sizes = {path or "the array": tuple(x.shape[:1]) for path, x in batches.leaves(self._nest)}
        if not sizes:
            raise DataError("There are no examples: the nest holds no array.")
        if len(set(sizes.values())) > 1 or not all(sizes.values()):
            found = ", ".join(f"{path} {s[0] if s else 'none'}" for path, s in sizes.items())
            raise DataError(
                f"The arrays don't have the same first dimension: {found}. Each holds all "
                "examples, one after the other."
            )
        self._length = int(next(iter(sizes.values()))[0])

    def __len__(self) -> int:
        return self._length

    @_plain
    def take(self, indices: tf.Tensor) -> Any:
        """The batch of these examples; a scalar gives one example. Traced."""

        def from_array(x: tf.Tensor) -> tf.Tensor:
            # One aligned slice is not copied, which pays for its ops if it is large.
            large = x.dtype.size * math.prod(d or 0 for d in x.shape[1:]) >= LARGE
            return x[indices] if indices.shape.rank == 0 and large else tf.gather(x, indices)

        return tf.nest.map_structure(from_array, self._nest)

    def identity(self) -> dict[str, Any]:
        """What the order depends on, beside the number of examples."""
        return {}


class Items:
    """The items of a Python sequence: nests of numpy values, all of one structure.

    `__getitem__`, or `__getitems__(list of int)` where there is one, is called from TensorFlow's
    threads. If the sequence has an `element_spec` (a nest of `tf.TensorSpec`), dimensions that it
    leaves open may differ; otherwise the first item tells structure, dtypes and shapes.

    Attributes:
      alone: items whose shapes may differ can't be taken as a batch.

    Raises:
      DataError: the first or last item can't be used, and why. One in between is found out when
        it is read; TensorFlow's error then has the message.
    """

    decode: Callable[[Any], Any] | None = None

    def __init__(self, sequence: Any):
        self._sequence = sequence
        self._many = getattr(sequence, "__getitems__", None)
        spec = getattr(sequence, "element_spec", None)
        if len(self):
            spec = spec or _nest(_nest(sequence[0], _array), _spec)
        self._spec: Any = spec
        self._leaves = batches.leaves(spec) if len(self) else []
        self.alone = not all(s.shape.is_fully_defined() for _, s in self._leaves)
        for index in {0, len(self) - 1} if len(self) else ():
            self._values(index, sequence[index])

    def __len__(self) -> int:
        return len(self._sequence)

    @_plain
    def take(self, indices: tf.Tensor) -> Any:
        """The batch of these examples; a scalar gives one example. Traced."""
        kinds = [spec.dtype for _, spec in self._leaves]
        # Flattened, because eagerly a single one comes without its list.
        found = tf.nest.flatten(tf.numpy_function(self._read, [indices], kinds))
        for value, (_, spec) in zip(found, self._leaves, strict=True):
            value.set_shape(indices.shape.concatenate(spec.shape))
        return _filled(self._spec, iter(found))

    def identity(self) -> dict[str, Any]:
        """What the order depends on, beside the number of examples."""
        return {}

    def _read(self, indices: np.ndarray) -> list[np.ndarray]:
        numbers = indices.ravel().tolist()
        items = self._many(numbers) if self._many else [self._sequence[i] for i in numbers]
        rows = [self._values(i, item) for i, item in zip(numbers, items, strict=True)]
        return [np.stack(column) for column in zip(*rows, strict=True)] if indices.ndim else rows[0]

    def _values(self, index: int, item: Any) -> list[np.ndarray]:
        """Its leaves; raises DataError if they are not like those of the first item."""
        found = batches.leaves(_nest(item, _array))
        if [path for path, _ in found] != [path for path, _ in self._leaves]:
            raise DataError(
                f"Item {index} has another structure than the first: it has "
                f"{_names(found)}, that one {_names(self._leaves)}."
            )
        for (path, value), (_, spec) in zip(found, self._leaves, strict=True):
            if not (spec.dtype == _dtype(value) and spec.shape.is_compatible_with(value.shape)):
                raise DataError(
                    f"Item {index}{path} is {_dtype(value).name} {list(value.shape)}, but should "
                    f"be {spec.dtype.name} {spec.shape}. Give the sequence an element_spec that "
                    "leaves open what may differ, and bring it to one shape by map."
                )
        return [value for _, value in found]


def as_examples(examples: Any) -> Any:
    """Arrays, Items, or what is like them already (it has `take`). Raises DataError if neither."""
    if hasattr(examples, "take") and hasattr(examples, "identity"):
        return examples
    if isinstance(examples, Mapping | tuple | np.ndarray | tf.Tensor):
        return Arrays(examples)
    if hasattr(examples, "__len__") and hasattr(examples, "__getitem__"):
        return Items(examples)
    remedy = (
        " Its own iterator goes where it wants: give the trainer the data set itself."
        if isinstance(examples, tf.data.Dataset)
        else ""
    )
    raise DataError(
        "The examples must be arrays in a dict or tuple, or a sequence with __len__ and "
        f"__getitem__; got {type(examples).__name__}.{remedy}"
    )


def _nest(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """Applied to what lies in dicts and tuples; as in tf.data, a list is a value."""
    if isinstance(value, Mapping):
        return {key: _nest(one, leaf) for key, one in value.items()}
    if isinstance(value, tuple):
        found = [_nest(one, leaf) for one in value]
        return type(value)(*found) if hasattr(value, "_fields") else tuple(found)
    return leaf(value)


def _filled(nest: Any, values: Any) -> Any:
    """The nest with its leaves replaced in the order of `batches.leaves`."""
    return _nest(nest, lambda _: next(values))


def _array(value: Any) -> np.ndarray:
    if isinstance(value, str | bytes):  # else numpy takes zeros off the end
        return np.asarray(value, dtype=object)
    found = np.asarray(value)
    return found.astype(object) if found.dtype.kind in "SU" else found


def _dtype(value: np.ndarray) -> tf.DType:
    return tf.string if value.dtype == object else tf.as_dtype(value.dtype)


def _spec(value: np.ndarray) -> tf.TensorSpec:
    return tf.TensorSpec(value.shape, _dtype(value))


def _names(leaves: Sequence[tuple[str, Any]]) -> str:
    return ", ".join(path or "one value" for path, _ in leaves) or "nothing"
