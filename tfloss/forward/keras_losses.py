"""Keras losses over the global batch. Replica code, traced.

A Keras loss divides by a count of its own part of the batch: of unmasked values (`Masking`,
`mask_zero`, `ignore_class`), or of sample weights. These counts differ between replicas and
micro-batches, so the mean of the parts' losses is not the loss of the batch. Some losses, such as
Dice, are no mean over examples at all. They are computed of the whole batch.
"""

from typing import Any

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.errors import LossError
from tfloss.forward.context import current_context
from tfloss.forward.global_batch import (
    cross_replica_concat,
    divides_batch,
    global_mean,
    global_sum,
)


def keras_loss(
    loss: keras.losses.Loss, y_true: Any, y_pred: Any, sample_weight: Any = None
) -> tf.Tensor:
    """Computes a Keras loss, divided by the count of the global batch.

    On one replica, without accumulation, this is `loss(y_true, y_pred, sample_weight)` bit for bit.
    A loss that is one value for the batch (a Dice loss, a function of yours that returns a scalar,
    or a loss that overrides `__call__`) is computed of the examples of all replicas.

    Args:
      loss: Keras loss. If it wraps a function, that is its attribute `function`.
      y_true: Labels, as the loss takes them.
      y_pred: Predictions, with the mask that Keras has attached to them.
      sample_weight: Weights of examples or of single values, or None.

    Returns:
      Scalar. Its mean over replicas and micro-batches, weighted by their numbers of examples, is
      the loss of the global batch.

    Raises:
      LossError: The loss is one value for the batch, and there are sample weights, or the batch
        can't be put together: with micro-batches, or compiled by XLA on several replicas.
    """
    local: Any
    if type(loss).__call__ is not keras.losses.Loss.__call__:
        if divides_batch():
            return _of_whole_batch(loss, y_true, y_pred, sample_weight)
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
    if not divides_batch():
        return local
    if _mixes_examples(loss, values.rank, tf.convert_to_tensor(y_pred).shape.rank):
        return _of_whole_batch(loss, y_true, y_pred, sample_weight)
    if values.rank == 0:
        return local
    if loss.reduction == "sum":
        return global_sum(local)
    count = _divisor(loss, _both(_upstream.mask_of(y_pred), values.mask), sample_weight)
    return local if count is None else global_mean(local, count)


def _mixes_examples(loss: keras.losses.Loss, rank: int | None, rank_of_predictions: Any) -> bool:
    """Returns whether the loss may be something else than a mean over examples."""
    source = getattr(loss, "function", type(loss))
    name = getattr(source, "__name__", "")
    if isinstance(loss, keras.losses.Dice | keras.losses.Tversky):
        axes = loss.axis if isinstance(loss.axis, list | tuple) else [loss.axis]
        return any(axis is None or axis % rank_of_predictions == 0 for axis in axes)
    if isinstance(loss, keras.losses.Circle) or name in ("dice", "tversky", "circle"):
        return True
    # All other losses of Keras are means, also of predictions [n], of which they return one value.
    return rank == 0 and getattr(keras.losses, name, None) is not source


def _of_whole_batch(
    loss: keras.losses.Loss, y_true: Any, y_pred: Any, sample_weight: Any
) -> tf.Tensor:
    """Computes a loss of the examples of all replicas."""
    context = current_context()
    if context is not None and context.normalisers is not None:
        raise LossError(
            f"Loss {loss.name!r} is one value for the whole batch, and perhaps no mean over "
            "examples, so micro-batches and replicas can't compute it one by one. Let it return "
            "one value for each example (a Dice loss: axis=(1, 2, 3) for images). Or train without "
            "accumulate, and on several replicas with jit=False."
        )

    def gather(x: Any) -> Any:
        x = tf.convert_to_tensor(x)
        if x.dtype == tf.bool:  # only numbers can be gathered
            return tf.cast(cross_replica_concat(tf.cast(x, tf.int32)), tf.bool)
        attached = {name: gather(value) for name, value in _upstream.attached_to(x).items()}
        return _upstream.attach(cross_replica_concat(x), attached)

    arguments = [y_true, y_pred] if sample_weight is None else [y_true, y_pred, sample_weight]
    value: Any = loss(*(tf.nest.map_structure(gather, one) for one in arguments))
    return value


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
