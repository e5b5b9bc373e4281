"""How a checkpoint and the variables it is to be restored into differ, and what to do. Host."""

import re
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfloss.checkpoint.values import tf_variable

_LISTED = 10


class Mismatch:
    """How a checkpoint and some variables differ; false if they don't.

    Args:
      saved: `{name: {"shape": [...], "dtype": "..."}}`, from the manifest.
      variables: `{name: variable}`.

    Attributes:
      missing: names of variables that are not in the checkpoint.
      unexpected: names that are only in the checkpoint.
      shapes: `"name (saved [1], here [2])"` of those of another shape.
      dtypes: the same for dtypes.
    """

    def __init__(self, saved: Mapping[str, Any], variables: Mapping[str, Any]):
        self.missing = [name for name in variables if name not in saved]
        self.unexpected = [name for name in saved if name not in variables]
        self.shapes: list[str] = []
        self.dtypes: list[str] = []
        here = {name: _described(variable) for name, variable in variables.items()}
        there = {
            name: (tf.TensorShape(entry["shape"]), entry["dtype"]) for name, entry in saved.items()
        }
        for name, (shape, dtype) in here.items():
            if name not in there:
                continue
            saved_shape, saved_dtype = there[name]
            if not shape.is_compatible_with(saved_shape):
                shapes = f"saved {_listed_shape(saved_shape)}, here {_listed_shape(shape)}"
                self.shapes.append(f"{name} ({shapes})")
            elif dtype != saved_dtype:
                self.dtypes.append(f"{name} (saved {saved_dtype}, here {dtype})")
        self._only_numbers = _unnumbered(here) == _unnumbered(there)

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.shapes or self.dtypes)

    def __str__(self) -> str:
        rows = {
            "not in the checkpoint": self.missing,
            "only in the checkpoint": self.unexpected,
            "of another shape": self.shapes,
            "of another dtype": self.dtypes,
        }
        return "\n".join(f"  {what}: {_listed(names)}" for what, names in rows.items() if names)

    def advice(self) -> str:
        """What to do about it."""
        if self._only_numbers:
            return (
                "The names differ only in the numbers that Keras gives to layers without a name "
                "(dense, dense_1, ...): name the layers, or call keras.utils.clear_session() "
                "before making the model a second time in one process."
            )
        if self.missing and not (self.unexpected or self.shapes or self.dtypes):
            return (
                "If layers were unfrozen since (their optimizer slots are missing), or averages "
                "or a loss scale were turned on, start in a new workdir, with "
                "tfloss.load_weights(model, path) for the weights."
            )
        return (
            "If the model was changed on purpose, start in a new workdir, with "
            "tfloss.load_weights(model, path, strict=False, rename={...}) for a warm start."
        )


def _described(variable: Any) -> tuple[tf.TensorShape, str]:
    value = tf_variable(variable)
    return tf.TensorShape(value.shape), tf.as_dtype(value.dtype).name


def _unnumbered(described: Mapping[str, tuple[tf.TensorShape, str]]) -> list[tuple[str, ...]]:
    """All names without Keras's numbers, with shapes and dtypes, in order.

    Shapes count: in a second model `dense_1` is the first layer, and was the second.
    """
    return sorted(
        (re.sub(r"_\d+(?=[/_#]|$)", "", name), str(shape), dtype)
        for name, (shape, dtype) in described.items()
    )


def _listed(names: list[str]) -> str:
    more = f", ... and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _listed_shape(shape: tf.TensorShape) -> str:
    return "of any rank" if shape.rank is None else str(shape.as_list())
