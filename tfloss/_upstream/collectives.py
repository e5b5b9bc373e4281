"""The collectives of several workers: how to end them, and what a variable's creation needs.

On several workers, `MultiWorkerMirroredStrategy` sends the initial value of each variable from the
first worker to the others. If the workers create different variables, they hang, or fail with an
error about the shapes of a collective.
"""

# This package is the place for private attributes.
# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import context


def abort_collectives(reason: str) -> None:
    """Lets all collectives of this process fail, those that wait now and all later ones.

    TensorFlow's own health check does the same. Nothing public does: without it, a collective waits
    for a worker that never comes.

    Args:
      reason: The message of their `tf.errors.UnavailableError`.
    """
    state: Any = context.context()
    if state._context_handle is not None:  # else this would start TensorFlow
        state.abort_collective_ops(tf.errors.UNAVAILABLE, reason)


def before_variables(strategy: tf.distribute.Strategy, check: Callable[[str], None]) -> None:
    """Calls a function before a variable is created under a strategy.

    `tf.variable_creator_scope` would have to be entered by the user's code.

    Args:
      strategy: The strategy.
      check: It is given a description of the variable. It may raise.
    """
    extended: Any = strategy.extended
    create = extended._create_variable

    def checked(next_creator: Any, **kwargs: Any) -> Any:
        check(_describe(kwargs))
        return create(next_creator, **kwargs)

    extended._create_variable = checked


def _describe(kwargs: dict[str, Any]) -> str:
    value, shape, dtype = (kwargs.get(key) for key in ("initial_value", "shape", "dtype"))
    if shape is None and not callable(value):
        shape = getattr(value, "shape", None)
    dtype = getattr(value, "dtype", None) if dtype is None else dtype
    name = kwargs.get("name") or "without a name"
    text = f"variable {name}"
    if shape is not None:
        text += f" of shape {tuple(tf.TensorShape(shape).as_list())}"
    return text if dtype is None else f"{text}, {tf.as_dtype(dtype).name}"
