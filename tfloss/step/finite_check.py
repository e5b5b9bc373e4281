"""Checks that the losses and gradients of a step are finite, before its update. Traced.

The gradients of a group are checked by one number, their sum. `benchmarks/guard.py` compares step
times with and without the check.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

# Adding larger tensors up needs memory, and saves nothing.
_SMALL = 2**16  # elements


@dataclasses.dataclass(frozen=True)
class FiniteCheck:
    """The numbers of a step that must be finite, the same on all replicas.

    Attributes:
      losses: Names of the losses, their total, and the tags of what a balancer needs to be finite.
      groups: Names of the groups whose gradients are checked.
      values: float32 [losses].
      gradients: float32 scalars, for each group one that is finite if its gradient is: the
        gradient's norm or the sum of its elements.
      finite: bool scalar, whether all of them are finite.
      passed: bool scalar, whether the step is no failure: all are finite, or those that are not
        may be skipped.
      losses_passed: The same of the losses alone.
      notes: What to say if one of `losses` is not finite, by its name.
    """

    losses: tuple[str, ...]
    groups: tuple[str, ...]
    values: tf.Tensor
    gradients: list[tf.Tensor]
    finite: tf.Tensor
    passed: tf.Tensor
    losses_passed: tf.Tensor
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)


def all_finite(values: tf.Tensor | Sequence[tf.Tensor]) -> tf.Tensor:
    """Whether numbers are finite, with as few ops as possible: a bool scalar.

    Args:
      values: A vector, or scalars.
    """
    if not isinstance(values, tf.Tensor):
        if len(values) == 1:
            return tf.math.is_finite(values[0])
        values = tf.stack(values)
    return tf.reduce_all(tf.math.is_finite(values))


def element_sum(gradients: Sequence[Any]) -> tf.Tensor:
    """The sum of all elements of gradients, which is NaN or infinite if an element is.

    Tensors of one shape are added up first, by one op. The sum of finite elements overflows only if
    some are beyond 1e30.

    Args:
      gradients: Tensors or `tf.IndexedSlices`, of any floating dtypes.

    Returns:
      float32 scalar.
    """
    alike: dict[Any, list[tf.Tensor]] = {}
    for number, gradient in enumerate(gradients):
        values = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
        if values.dtype.is_complex:
            values = tf.abs(values)
        if values.dtype == tf.float16:  # a sum of ordinary values would overflow
            values = tf.cast(values, tf.float32)
        size = values.shape.num_elements()
        small = size is not None and size <= _SMALL
        key = (values.dtype, *values.shape) if small else (number,)
        alike.setdefault(key, []).append(values)
    added = [tf.add_n(ones) if len(ones) > 1 else ones[0] for ones in alike.values()]
    sums = [_float32(tf.reduce_sum(one)) for one in added]
    return tf.add_n(sums) if sums else tf.constant(0.0)


def _float32(value: tf.Tensor) -> tf.Tensor:
    if value.dtype != tf.float64:
        return tf.cast(value, tf.float32)
    # A finite float64 may be infinite as float32.
    return tf.where(tf.math.is_finite(value), 0.0, float("nan"))
