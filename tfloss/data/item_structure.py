"""The structure of the items that Python code yields: nests of numpy values. Host code.

As in tf.data, dicts and tuples are opened, and a list is a value.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfloss.data import batches
from tfloss.errors import DataError

SHAPES_CURE = (
    "Give the sequence an element_spec that leaves those dimensions open, and use map to give all "
    "examples the same shape."
)


class ItemStructure:
    """Structure, dtypes and shapes that all items have.

    Args:
      spec: Nest of `tf.TensorSpec`s of an item.
      cure: What messages advise if shapes differ.

    Attributes:
      spec: The argument.
      specs: Its leaves, in the order of `batches.named_leaves`.
      is_static: Whether all shapes are known.
    """

    def __init__(self, spec: Any, cure: str = SHAPES_CURE):
        self.spec, self._cure = spec, cure
        self._leaves = batches.named_leaves(spec)
        self.specs: list[tf.TensorSpec] = [one for _, one in self._leaves]
        self.is_static = all(one.shape.is_fully_defined() for one in self.specs)
        shapes: list[Any] = [one.shape for one in self.specs]
        self._usual = [
            (one.dtype.as_numpy_dtype, None if shape.rank is None else tuple(shape))
            for one, shape in zip(self.specs, shapes, strict=True)
        ]

    @classmethod
    def of(
        cls, items: Sequence[Any], *, open_rows: bool = False, cure: str = SHAPES_CURE
    ) -> "ItemStructure":
        """Returns the structure of the first item; dimensions that differ in others are left open.

        Args:
          items: Items, at least one.
          open_rows: Whether to leave all first dimensions open.
          cure: What messages advise if shapes differ.
        """
        shapes = [[_array(leaf).shape for _, leaf in named_arrays(item)] for item in items]

        def shape_of(index: int, shape: tuple[int, ...]) -> list[int | None]:
            others = [one[index] for one in shapes if index < len(one)]
            found = [
                size if all(len(o) != len(shape) or o[axis] == size for o in others) else None
                for axis, size in enumerate(shape)
            ]
            return [None, *found[1:]] if open_rows and found else found

        arrays = [_array(leaf) for _, leaf in named_arrays(items[0])]
        specs = iter([tf.TensorSpec(shape_of(i, x.shape), _dtype(x)) for i, x in enumerate(arrays)])
        return cls(map_leaves(items[0], lambda _: next(specs)), cure)

    def arrays(self, what: str, item: Any) -> list[np.ndarray]:
        """Returns the leaves of an item.

        Args:
          what: What messages call the item, such as "Item 3".
          item: The item.

        Raises:
          DataError: They don't match the spec.
        """
        usual = self._usual_arrays(item)
        if usual is not None:
            return usual
        found = batches.named_leaves(map_leaves(item, _array))
        if [path for path, _ in found] != [path for path, _ in self._leaves]:
            raise DataError(
                f"{what} has another structure than the first item: it has {_names(found)}, the "
                f"first has {_names(self._leaves)}. Give all items the same structure."
            )
        for (path, value), spec in zip(found, self.specs, strict=True):
            if not (spec.dtype == _dtype(value) and spec.shape.is_compatible_with(value.shape)):
                raise DataError(
                    f"{what}{path} is {_dtype(value).name} {list(value.shape)}, but should "
                    f"be {spec.dtype.name} {spec.shape}. If shapes differ: {self._cure}"
                )
        return [value for _, value in found]

    def _usual_arrays(self, item: Any) -> list[np.ndarray] | None:
        """Returns the leaves of an item of numpy values and bytes that match the spec, or None.

        For small items, to compare paths and TensorFlow's shapes takes longer than to read them.
        """
        found: list[Any] = []
        if not _matched(item, self.spec, found):
            return None
        arrays: list[np.ndarray] = []
        for value, (dtype, shape) in zip(found, self._usual, strict=True):
            # numpy would remove trailing zero bytes
            arrays.append(np.asarray(value, dtype=object if type(value) is bytes else None))
            there = arrays[-1].shape
            if arrays[-1].dtype != dtype or shape is None or len(there) != len(shape):
                return None
            if there != shape and any(
                n not in (None, m) for n, m in zip(shape, there, strict=True)
            ):
                return None
        return arrays

    def packed(self, values: Sequence[Any]) -> Any:
        """Returns a nest of this structure with other leaves, in the order of `specs`."""
        rest = iter(values)
        return map_leaves(self.spec, lambda _: next(rest))


def map_leaves(value: Any, function: Callable[[Any], Any]) -> Any:
    """Applies a function to each leaf in dicts and tuples; as in tf.data, a list is a leaf."""
    if isinstance(value, Mapping):
        return {key: map_leaves(one, function) for key, one in value.items()}
    if isinstance(value, tuple):
        found = [map_leaves(one, function) for one in value]
        return type(value)(*found) if hasattr(value, "_fields") else tuple(found)
    return function(value)


def _matched(item: Any, spec: Any, found: list[Any]) -> bool:
    """Adds the leaves of an item, in the order of `batches.named_leaves`.

    Returns:
      Whether it consists of numpy values and bytes, in plain dicts and tuples as the spec does.
    """
    kind: Any = type(item)
    if kind is dict:
        if type(spec) is not dict or list(item) != list(spec):
            return False
        return all(_matched(one, spec[key], found) for key, one in item.items())
    if kind is tuple:
        if type(spec) is not tuple or len(item) != len(spec):
            return False
        return all(_matched(one, each, found) for one, each in zip(item, spec, strict=True))
    found.append(item)
    usual = kind is np.ndarray or kind is bytes or isinstance(item, np.generic)
    return usual and isinstance(spec, tf.TensorSpec)


def named_arrays(nest: Any) -> list[tuple[str, Any]]:
    """`(path, leaf)` of each leaf in dicts and tuples; a list is a leaf."""
    # Hidden in functions, since `named_leaves` looks into lists.
    hidden = map_leaves(nest, lambda leaf: lambda: leaf)
    return [(path, leaf()) for path, leaf in batches.named_leaves(hidden)]


def _array(value: Any) -> np.ndarray:
    if isinstance(value, str | bytes):  # else numpy removes trailing zero bytes
        return np.asarray(value, dtype=object)
    found = np.asarray(value)
    return found.astype(object) if found.dtype.kind in "SU" else found


def _dtype(value: np.ndarray) -> tf.DType:
    return tf.string if value.dtype == object else tf.as_dtype(value.dtype)


def _names(leaves: Sequence[tuple[str, Any]]) -> str:
    return ", ".join(path or "one value" for path, _ in leaves) or "nothing"
