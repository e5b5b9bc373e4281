"""Adam as one op for each variable, where Keras builds forty. Traced.

Keras writes the update in small ops, which are traced, scheduled and read memory one after the
other; TensorFlow has all of it as one kernel (and XLA as one lowering). The formula is the same,
that of section 2 of https://arxiv.org/abs/1412.6980; the factors 1 - beta are rounded as the
variable is, which in float32 moves an update by about 1e-5 of itself.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from tfloss import _upstream

# Exactly those: a subclass may do anything.
FUSED = (keras.optimizers.Adam, keras.optimizers.AdamW)


@contextlib.contextmanager
def fused_updates(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """One `optimizer.apply` inside updates dense variables by one op each.

    Clipping, weight decay, averages, constraints and iterations stay Keras'. So does the whole
    update of another optimizer, with `amsgrad`, of sparse gradients, and where somebody put an
    `update_step` of their own on the optimizer.
    """
    if type(optimizer) not in FUSED or optimizer.amsgrad or "update_step" in vars(optimizer):
        yield
        return
    rates: dict[tuple, dict[str, tf.Tensor]] = {}  # computed once, not for every variable

    def make(original):
        def update_step(gradient, variable, learning_rate):
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
    """What the op takes that is the same for all variables of a dtype."""
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
