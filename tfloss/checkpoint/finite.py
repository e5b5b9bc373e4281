"""Finds variables with values that are not finite. Host code."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfloss.checkpoint.values import is_accumulator, tf_variable
from tfloss.errors import listed


def nonfinite_variables(variables: Mapping[str, Any] | keras.Model) -> list[str]:
    """Returns the names of the variables that have NaN or infinite values on a replica.

    The values stay on their devices. NumPy looks at those in main memory, which takes half of the
    time of hundreds of small ops. Variables of metrics are left out: the next reset clears them.

    Args:
      variables: `{name: variable}`, or a model, whose variables are named by their paths.
    """
    if isinstance(variables, keras.Model):
        variables = {variable.path: variable for variable in variables.variables}
    return [name for name, variable in variables.items() if not _is_finite(variable)]


def nonfinite_arrays(values: Mapping[str, np.ndarray]) -> list[str]:
    """Returns the names of the arrays that have NaN or infinite values.

    Args:
      values: `{name: array}`, of any dtypes.
    """
    return [
        name
        for name, value in values.items()
        if tf.as_dtype(value.dtype).is_floating and not np.isfinite(value).all()
    ]


def describe_nonfinite(names: list[str]) -> str:
    """Describes what is not finite, and what to do, for an error message.

    Args:
      names: Names of the variables, at least one.
    """
    return (
        f"NaN or infinite values in {listed(names)}. An update or its optimizer state overflowed, "
        "or a gradient was not finite and nothing checked it (NaNGuard with gradients=True does). "
        "Lower the learning rate, or continue from an earlier checkpoint."
    )


def _is_finite(variable: Any) -> bool:
    if not tf.as_dtype(variable.dtype).is_floating or is_accumulator(variable):
        return True
    value = tf_variable(variable)
    local = [value]
    if isinstance(value, tf.distribute.DistributedValues):
        local = value.distribute_strategy.experimental_local_results(value)
    return all(_all_finite(one.read_value()) for one in local)


def _all_finite(tensor: tf.Tensor) -> bool:
    if tf.DeviceSpec.from_string(tensor.device).device_type == "CPU":
        return bool(np.isfinite(tensor.numpy()).all())
    return bool(tf.reduce_all(tf.math.is_finite(tensor)))
