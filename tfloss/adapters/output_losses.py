"""The losses of a predictor's outputs, named, weighted, and divided by global counts.

Which loss belongs to which output, label and sample weight is Keras's decision, in all structures
that `compile` and `fit` take. Replica code, traced.
"""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.common.unique_names import unique_name
from tfloss.errors import LossError
from tfloss.evaluation.metrics import describe_nest
from tfloss.forward.keras_losses import keras_loss

_BY_SHAPE = ("crossentropy", "ce")  # `compile` chooses these by the shape of the labels


class OutputLosses:
    """The losses of the outputs of one model.

    Args:
      loss: Keras losses, their names, or functions `loss(y_true, y_pred)`, in any structure that
        `compile` takes.
      loss_weights: Their weights, as `compile` takes them, or None.
      output_names: Names of the outputs, or None.

    Raises:
      LossError: A loss has `reduction=None`, so that it is not one number.
      ValueError: Keras has no loss of a name.
    """

    def __init__(self, loss: Any, loss_weights: Any, output_names: Any):
        self._loss = keras.tree.map_structure(_checked_loss, loss)
        self._weights, self._output_names = loss_weights, output_names

    def named(self, y_true: Any, y_pred: Any, sample_weight: Any) -> dict[str, tf.Tensor]:
        """Computes the losses. Replica code, traced.

        Args:
          y_true: Labels, in any structure that `fit` takes.
          y_pred: Predictions.
          sample_weight: Sample weights, or None.

        Returns:
          `{name of the output: weight * loss}`, scalars. The only loss of a single output has its
          own name.

        Raises:
          LossError: Losses, outputs and labels don't fit.
        """
        return self._both(y_true, y_pred, sample_weight)[0]

    def total(
        self,
        y_true: Any,
        y_pred: Any,
        sample_weight: Any = None,
        *,
        seen: list[dict[str, tf.Tensor]] | None = None,
    ) -> Any:
        """Computes the weighted sum of the losses, as `compute_loss` of a model expects it.

        Args:
          y_true: Labels.
          y_pred: Predictions.
          sample_weight: Sample weights, or None.
          seen: Where the single losses are added, by name and without their weights.
        """
        weighted, plain = self._both(y_true, y_pred, sample_weight)
        if seen is not None:
            seen.append(plain)
        first, *rest = weighted.values()
        return sum(rest, first)

    def _both(
        self, y_true: Any, y_pred: Any, sample_weight: Any
    ) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """Returns the losses by name, multiplied by their weights, and without them."""
        weighted: dict[str, Any] = {}
        plain: dict[str, Any] = {}
        for one in self._of_outputs(y_true, y_pred, sample_weight):
            loss = _wrapped(one.loss)
            value: Any = keras_loss(loss, one.y_true, one.y_pred, one.sample_weight)
            name = unique_name(one.name or loss.name, plain)
            plain[name] = value
            weighted[name] = value if one.weight is None else keras.ops.multiply(value, one.weight)
        return weighted, plain

    def _of_outputs(
        self, y_true: Any, y_pred: Any, sample_weight: Any
    ) -> list[_upstream.OutputLoss]:
        try:
            found = _upstream.output_losses(
                self._loss, self._weights, self._output_names, y_true, y_pred, sample_weight
            )
            if any(keras.tree.is_nested(one.y_pred) for one in found):
                raise ValueError("one loss is for several outputs.")
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise LossError(
                f"The losses don't fit the outputs of the model: {error}\n"
                f"  loss: {_names(self._loss)}\n"
                f"  predictions: {describe_nest(y_pred)}\n"
                f"  labels y: {describe_nest(y_true)}\n"
                f"  sample_weight: {describe_nest(sample_weight)}\n"
                "Give a loss for each output, by its name or in the order of the outputs, and None "
                "for an output without a loss."
            ) from None
        if not keras.tree.is_nested(y_pred) and len(found) > 1:
            raise LossError(
                f"A single output has {len(found)} losses: {_names(self._loss)}. Keras's fit "
                "minimises the first one only. Give one function that returns their sum."
            )
        return found


def _checked_loss(loss: Any) -> Any:
    """Resolves the name of a loss, and refuses one that is no number."""
    if loss is None or (isinstance(loss, str) and loss.lower() in _BY_SHAPE):
        return loss
    found: Any = keras.losses.get(loss)
    if isinstance(found, keras.losses.Loss) and found.reduction in (None, "none"):
        raise LossError(
            f"Loss {found.name!r} has reduction=None, so it is not one number. `fit` takes the "
            "gradient of the sum of its values. Choose reduction='sum' for the same, or "
            "'sum_over_batch_size' for their mean."
        )
    return found


def _wrapped(loss: keras.losses.Loss) -> keras.losses.Loss:
    function = getattr(loss, "fn", None)
    if _upstream.wraps_function(loss) and function is not None:
        return _FunctionLoss(function)
    return loss


class _FunctionLoss(_upstream.LossFunctionWrapper):
    """A plain `loss(y_true, y_pred)` with Keras's ranks, reduction and sample weights."""

    def __init__(self, function: Callable[[Any, Any], Any]):
        # TensorFlow refuses a scope that begins with "_", and "<lambda>".
        name = getattr(function, "__name__", "").strip("<>_") or "loss"
        super().__init__(function, name=name)
        self.function = function


def _names(loss: Any) -> Any:
    if isinstance(loss, Mapping):
        return {key: _names(one) for key, one in loss.items()}
    if isinstance(loss, list | tuple):
        return [_names(one) for one in loss]
    return getattr(loss, "name", getattr(loss, "__name__", loss))
