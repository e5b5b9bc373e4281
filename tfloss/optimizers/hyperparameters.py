"""The hyperparameters of optimizers: learning rate, weight decay, momentum, and so on. Host code.

Keras keeps a constant learning rate in a variable, which the traced step reads. Other
hyperparameters are Python numbers, which are constants of the trace: if one changes, the step is
traced again. They may be scalar variables as well.
"""

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

_RATE = "_learning_rate"
_NO_HYPERPARAMETERS = ("built",)


def numbers(optimizer: Any) -> dict[str, float | None]:
    """Returns the hyperparameters of an optimizer that are Python numbers, or None, by attribute.

    Args:
      optimizer: A Keras optimizer.
    """
    return {
        name: value
        for name, value in vars(optimizer).items()
        if (value is None or isinstance(value, int | float))
        and name[0] != "_"
        and name not in _NO_HYPERPARAMETERS
    }


def scalar_variables(optimizer: Any) -> dict[str, Any]:
    """Returns the hyperparameters of an optimizer that are variables, by attribute.

    Args:
      optimizer: A Keras optimizer.
    """
    return {
        "learning_rate" if name == _RATE else name: value
        for name, value in vars(optimizer).items()
        if isinstance(value, keras.Variable | tf.Variable)
        and not tuple(value.shape)
        and (name == _RATE or name[0] != "_")
    }


def signature(optimizers: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns what is frozen when a step is traced: a value that differs if a number does.

    Args:
      optimizers: `{name: Keras optimizer}`.
    """
    return tuple((name, *numbers(one).items()) for name, one in optimizers.items())
