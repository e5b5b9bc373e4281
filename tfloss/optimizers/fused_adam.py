"""Adam as one op for each variable, where Keras builds forty. Traced.

Keras writes the update as small ops, each of which is traced, scheduled, and reads memory.
TensorFlow has one kernel (and one XLA lowering) for all of it. The formula is the same, that at
the end of section 2 of https://arxiv.org/abs/1412.6980. The factors 1 - beta are rounded to the
dtype of the variable, which in float32 changes an update by about 1e-5 of itself.
"""

import contextlib
from collections.abc import Callable, Generator
from typing import Any

import keras
import tensorflow as tf

from tfloss import _upstream

# Exactly these classes: a subclass may do anything.
FUSED = (keras.optimizers.Adam, keras.optimizers.AdamW)


@contextlib.contextmanager
def fused_updates(optimizer: keras.optimizers.Optimizer) -> Generator[None]:
    """Makes one `optimizer.apply` in the `with` block update dense variables by one op each.

    Replica or cross-replica code, traced. Keras does the rest: clipping, weight decay, averages,
    constraints and iterations. It also does all of the update of other optimizers, with
    `amsgrad`, and of an optimizer that was given another `update_step`.

    Args:
      optimizer: Any Keras optimizer.
    """
    if type(optimizer) not in FUSED or optimizer.amsgrad or "update_step" in vars(optimizer):
        yield
        return
    rates: dict[tuple[Any, ...], dict[str, tf.Tensor]] = {}  # computed once for all variables

    def make(original: Callable[..., None]) -> Callable[..., None]:
        def update_step(gradient: Any, variable: Any, learning_rate: Any) -> None:
            dtype = tf.as_dtype(variable.dtype)
            if isinstance(gradient, tf.IndexedSlices) or dtype not in (tf.float32, tf.float64):
                return original(gradient, variable, learning_rate)
            here = tf.compat.v1.get_default_graph(), variable.device, dtype
            if here not in rates:
                rates[here] = _rates(optimizer, learning_rate, dtype)
            first, second = _upstream.adam_moments(optimizer, variable)
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=first.handle,
                v=second.handle,
                grad=tf.cast(gradient, dtype),
                **rates[here],
            )

        return update_step

    with _upstream.replaced(optimizer, "update_step", make):
        yield


def _rates(optimizer: Any, learning_rate: Any, dtype: tf.DType) -> dict[str, tf.Tensor]:
    """The arguments of the op that are the same for all variables of a dtype."""
    step = tf.cast(optimizer.iterations + 1, dtype)
    beta1, beta2 = tf.cast(optimizer.beta_1, dtype), tf.cast(optimizer.beta_2, dtype)
    return {
        "beta1_power": tf.pow(beta1, step),
        "beta2_power": tf.pow(beta2, step),
        "lr": tf.cast(learning_rate, dtype),
        "beta1": beta1,
        "beta2": beta2,
        "epsilon": tf.cast(optimizer.epsilon, dtype),
    }
