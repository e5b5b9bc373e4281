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

_FLOAT8: Any = tf.dtypes.experimental
# Dtypes that `CollectiveBcastSend` lacks, and those that hold the same values, or the same bits.
_SAME_VALUES = {
    **dict.fromkeys((tf.bfloat16, _FLOAT8.float8_e4m3fn, _FLOAT8.float8_e5m2), tf.float32),
    **dict.fromkeys((tf.int8, tf.uint8, tf.int16, tf.uint16), tf.int32),
    tf.uint32: tf.int64,
}
_SAME_BITS = dict.fromkeys((tf.complex64, tf.complex128, tf.uint64), tf.int64)


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


def broadcast_all_dtypes(strategy: tf.distribute.Strategy) -> None:
    """Lets workers create variables of dtypes that TensorFlow's broadcast does not know.

    The first worker sends the initial value of each variable to the others. The op for it knows
    bool, int32, int64 and the floats of 16 bits or more but for bfloat16. For other dtypes it
    fails, and Keras swallows its error while it builds a layer. So they are sent as another dtype.

    Args:
      strategy: The strategy.
    """
    extended: Any = strategy.extended
    original = extended._get_variable_creator_initial_value

    def initial_value(replica_id: int, device: Any, primary_var: Any, **kwargs: Any) -> Any:
        if replica_id:
            return original(replica_id, device, primary_var, **kwargs)

        def value_of_first_worker() -> tf.Tensor:
            with tf.device(device):
                value = kwargs["initial_value"]
                value = value() if callable(value) else value
                value = getattr(value, "wrapped_value", value)  # of a checkpoint
                value = tf.convert_to_tensor(value, kwargs.get("dtype"))
                sent = sendable(value)
                changed = {**kwargs, "initial_value": sent, "dtype": sent.dtype}
                return received(original(0, device, None, **changed)(), value.dtype)

        return value_of_first_worker

    extended._get_variable_creator_initial_value = initial_value


def sendable(value: tf.Tensor) -> tf.Tensor:
    """Returns a tensor in a dtype that can be broadcast."""
    if value.dtype in _SAME_BITS:
        return tf.bitcast(value, _SAME_BITS[value.dtype])
    return tf.cast(value, _SAME_VALUES.get(value.dtype, value.dtype))


def received(value: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Returns the tensor that `sendable` was given, of a dtype."""
    return tf.bitcast(value, dtype) if dtype in _SAME_BITS else tf.cast(value, dtype)


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
