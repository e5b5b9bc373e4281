"""The mismatch between a checkpoint and the variables to restore, and what to do. Host code."""

import re
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfloss.checkpoint.values import tf_variable

_MAX_LISTED = 10
_OF_OPTIONS = ("ema/", "loss_scale/", "skipped")  # what options of a training step save


class Mismatch:
    """The mismatch between a checkpoint and the variables to restore; false if there is none.

    Args:
      saved: `{name: {"shape": [...], "dtype": "..."}}`, from the manifest.
      variables: `{name: variable}`.
      what: What the names were read from: "checkpoint".

    Attributes:
      missing: Names of variables that are not in the checkpoint.
      unexpected: Names that are only in the checkpoint.
      shapes: `{name: "name (saved [1], here [2])"}` of variables with another shape.
      dtypes: `{name: "name (saved float32, here int32)"}` of variables with another dtype.
    """

    def __init__(
        self, saved: Mapping[str, Any], variables: Mapping[str, Any], what: str = "checkpoint"
    ):
        self._what = what
        self.missing = [name for name in variables if name not in saved]
        self.unexpected = [name for name in saved if name not in variables]
        self.shapes: dict[str, str] = {}
        self.dtypes: dict[str, str] = {}
        here = {name: _shape_and_dtype(variable) for name, variable in variables.items()}
        there = {
            name: (tf.TensorShape(entry["shape"]), str(entry["dtype"]))
            for name, entry in saved.items()
        }
        for name, (shape, dtype) in here.items():
            if name not in there:
                continue
            saved_shape, saved_dtype = there[name]
            if not shape.is_compatible_with(saved_shape):
                both = f"saved {_format_shape(saved_shape)}, here {_format_shape(shape)}"
                self.shapes[name] = f"{name} ({both})"
            elif dtype != saved_dtype:
                self.dtypes[name] = f"{name} (saved {saved_dtype}, here {dtype})"
        self._only_prefixes = _same_ends(self.missing, self.unexpected)
        self._only_numbers = _without_numbers(here) == _without_numbers(there)

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return bool(self.missing or self.unexpected or self.shapes or self.dtypes)

    def __str__(self) -> str:
        """One line for each kind of mismatch."""
        kinds = {
            f"not in the {self._what}": self.missing,
            f"only in the {self._what}": self.unexpected,
            "different shape": list(self.shapes.values()),
            "different dtype": list(self.dtypes.values()),
        }
        return "\n".join(f"  {kind}: {_join(names)}" for kind, names in kinds.items() if names)

    def advice(self) -> str:
        """Returns sentences for the error message: what to do about the mismatch."""
        if self._only_numbers:
            return (
                "The names differ only in the numbers that Keras gives to layers without a name "
                "(dense, dense_1, ...). Name the layers, or call keras.utils.clear_session() "
                "before making the model a second time in one process."
            )
        if self.missing and self._only_prefixes:
            return (
                "The names differ only in their beginnings: a layer that is built before its "
                "model, by adapt() or by a call of its own, has a path without the model. Build "
                "the layers in the same order as before: adapt them, or call layer.build(shape)."
            )
        if not (self.missing or self.shapes or self.dtypes) and all(
            name.startswith(_OF_OPTIONS) for name in self.unexpected
        ):
            return (
                "The run was trained with ema=, precision='mixed_float16' or skip_nonfinite=True, "
                "which this Trainer lacks. Give it the same options, or, to evaluate only, leave "
                "the optimizer out: Trainer(model, workdir=...)."
            )
        if self.missing and not (self.unexpected or self.shapes or self.dtypes):
            return (
                "If layers were unfrozen (their optimizer slots are missing), or if moving "
                "averages or a loss scale were turned on, start in a new workdir, with "
                "tfloss.load_weights(model, path) for the weights."
            )
        return (
            "If the model was changed on purpose, start in a new workdir, with "
            "tfloss.load_weights(model, path, strict=False, rename={...}) for a warm start."
        )


def _shape_and_dtype(variable: Any) -> tuple[tf.TensorShape, str]:
    value = tf_variable(variable)
    return tf.TensorShape(value.shape), tf.as_dtype(value.dtype).name


def _without_numbers(
    variables: Mapping[str, tuple[tf.TensorShape, str]],
) -> list[tuple[str, str, str]]:
    """Lists all names without Keras's numbers, with shapes and dtypes, in order.

    Shapes count, because `dense_1` may be the first layer of a second model, and the second layer
    of the first one.
    """
    return sorted(
        (re.sub(r"_\d+(?=[/_#]|$)", "", name), str(shape), dtype)
        for name, (shape, dtype) in variables.items()
    )


def _same_ends(some: list[str], others: list[str]) -> bool:
    """Whether each name of one list is the end of one of the other, group and all."""

    def plain(name: str) -> str:
        return name.removeprefix("model/")

    def fits(one: str, other: str) -> bool:
        return f"/{plain(one)}".endswith(f"/{plain(other)}")

    return len(some) == len(others) and all(
        any(fits(a, b) or fits(b, a) for b in others) for a in some
    )


def _join(names: list[str]) -> str:
    more = f", ... and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more


def _format_shape(shape: tf.TensorShape) -> str:
    if shape.rank is None:  # pyright: ignore[reportUnnecessaryComparison] - the stub says int
        return "of any rank"
    return str(shape.as_list())
