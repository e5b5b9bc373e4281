"""Mixed precision: the dtype that layers compute in, and a dynamic loss scale.

    tfloss.Trainer(model, optimizer, precision="mixed_bfloat16")

Variables, losses and updates stay float32. Micikevicius et al., "Mixed Precision Training"
(2018), section 3.2, for the loss scale.
"""

import keras
import tensorflow as tf

from tfloss import _upstream

_LOWEST = 1.0  # of the loss scale
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


def set_precision(model: keras.Model, name: str) -> None:
    """Sets the precision of all layers that have no policy of their own.

    A layer created with `dtype="float32"` (a softmax, a head whose logits must be exact) keeps
    it; a layer with Keras's default policy gets the new one. Host code; call it before anything
    is traced.

    Args:
      model: Any Keras model.
      name: "float32", "mixed_bfloat16" or "mixed_float16".

    Raises:
      ValueError: There is no such precision.
    """
    if name not in PRECISIONS:
        raise ValueError(f"precision={name!r}: choose one of {', '.join(PRECISIONS)}.")
    policy, default = keras.DTypePolicy(name), keras.config.dtype_policy()
    for _, layer in _upstream.layers_by_path(model):
        if layer.dtype_policy is default:
            layer.dtype_policy = policy


class LossScale:
    """A factor of the objective that keeps float16 gradients from vanishing.

    It is halved when a gradient (reduced over replicas) is not finite, and that update is skipped;
    it is doubled after `interval` updates without such a gradient. It never falls below 1, where
    such a gradient is a failure. Create it in the strategy's scope.

    Args:
      initial: Initial value.
      interval: Number of updates after which it is doubled.

    Attributes:
      value: float32 variable, the factor.
      good: int64 variable, the number of updates since the last change.
    """

    def __init__(self, initial: float = 2.0**15, interval: int = 2000):
        self.interval = interval
        self.value = _variable(tf.constant(initial, tf.float32), "loss_scale")
        self.good = _variable(tf.constant(0, tf.int64), "loss_scale_good_updates")

    def can_fall(self) -> tf.Tensor:
        """Whether another halving is possible, a bool scalar. Traced."""
        return self.value > _LOWEST

    def update(self, finite: tf.Tensor) -> list[tf.Tensor]:
        """Adapts the scale after an update. Cross-replica code, traced.

        Args:
          finite: bool scalar: whether the update was applied. If not, it was skipped.

        Returns:
          Results of the assignments; they must be computed in the step.
        """
        good = tf.where(finite, self.good + 1, tf.zeros_like(self.good))
        grown = good >= self.interval
        scale = tf.where(grown, self.value * 2.0, self.value)
        scale = tf.where(finite, scale, tf.maximum(self.value / 2.0, _LOWEST))
        good = tf.where(grown, tf.zeros_like(good), good)
        return [self.value.assign(scale), self.good.assign(good)]

    def variables(self) -> dict[str, tf.Variable]:
        """Its variables by their names in a checkpoint."""
        return {"loss_scale/value": self.value, "loss_scale/good_updates": self.good}


def _variable(initial: tf.Tensor, name: str) -> tf.Variable:
    first = tf.VariableAggregation.ONLY_FIRST_REPLICA
    return tf.Variable(initial, trainable=False, name=name, aggregation=first)
