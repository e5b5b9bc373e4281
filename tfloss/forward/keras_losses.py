"""Keras losses over the global batch. Replica code, traced.

A Keras loss divides by a count of its own part of the batch: of unmasked values (`Masking`,
`mask_zero`, `ignore_class`), or of sample weights. These counts differ between replicas and
micro-batches, so the mean of the parts' losses is not the loss of the batch.
"""

from typing import Any

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.errors import LossError
from tfloss.forward.global_batch import divides_batch, global_mean, global_sum


def keras_loss(
    loss: keras.losses.Loss, y_true: Any, y_pred: Any, sample_weight: Any = None
) -> tf.Tensor:
    """Computes a Keras loss, divided by the count of the global batch.

    On one replica, without accumulation, this is `loss(y_true, y_pred, sample_weight)` bit for bit.
    A loss that overrides `__call__` reduces its values itself. It is called as it is.

    Args:
      loss: Keras loss.
      y_true: Labels, as the loss takes them.
      y_pred: Predictions, with the mask that Keras has attached to them.
      sample_weight: Weights of examples or of single values, or None.

    Returns:
      Scalar. Its mean over replicas and micro-batches, weighted by their numbers of examples, is
      the loss of the global batch.

    Raises:
      LossError: The loss is one value for the batch, and there are sample weights.
    """
    local: Any
    if type(loss).__call__ is not keras.losses.Loss.__call__:
        local = loss(y_true, y_pred, sample_weight)
        return local
    values = _Values(loss)
    local = values(y_true, y_pred, sample_weight)
    if values.rank == 0:
        if sample_weight is not None:
            raise LossError(
                f"Loss {loss.name!r} gives one value for all examples, so sample weights can't "
                "weigh them. Let it return one value for each example."
            )
        return local
    if not divides_batch():
        return local
    if loss.reduction == "sum":
        return global_sum(local)
    count = _divisor(loss, _both(_upstream.mask_of(y_pred), values.mask), sample_weight)
    return local if count is None else global_mean(local, count)


def _divisor(loss: keras.losses.Loss, mask: Any, sample_weight: Any) -> tf.Tensor | None:
    """Returns what the loss divides by; None if this is in proportion to the examples."""
    if loss.reduction == "mean_with_sample_weight":
        weights = _upstream.weights_with_mask(sample_weight, mask, loss.dtype)
        return None if weights is None else tf.reduce_sum(weights)
    return None if mask is None else tf.reduce_sum(tf.cast(mask, tf.float32))


def _both(one: Any, two: Any) -> Any:
    return two if one is None else one if two is None else one & two


class _Values(keras.losses.Loss):
    """A loss that remembers the rank and the mask of its values, before they are reduced."""

    rank: int | None = None
    mask: Any = None

    def __init__(self, loss: keras.losses.Loss):
        super().__init__(name=loss.name, reduction=loss.reduction, dtype=loss.dtype)
        self._loss = loss

    def call(self, y_true: Any, y_pred: Any) -> Any:
        values = self._loss.call(y_true, y_pred)
        self.rank, self.mask = values.shape.rank, _upstream.mask_of(values)
        return values
