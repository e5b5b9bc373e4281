"""Adapters for models that do not report their losses themselves.

trainer = tfloss.Trainer(tfloss.adapters.supervised(net, "mse"), optimizer)
trainer.train(dataset_of_x_y, steps=1_000)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import keras
import tensorflow as tf

from tfloss.errors import DataError, LossError
from tfloss.forward.keras_losses import keras_loss


def supervised(
    model: keras.Model,
    loss: str | keras.losses.Loss | Callable[[Any, Any], Any] | Mapping[str, Any] | Sequence[Any],
) -> keras.Model:
    """Makes a model that reports its own loss from a predictor and a loss function.

    Batches are `(x, y)` or `(x, y, sample_weight)`, as for `keras.Model.fit`. In training the model
    returns `{<name of the loss>: loss(y, model(x))}`, in inference `model(x)`. Inference also
    accepts `x` alone. Runs on the host.

    On one replica, training is bit for bit that of `model.compile(loss=loss); model.fit(...)`; for
    Adam and AdamW this needs `Trainer(fused_adam=False)`. On several replicas, and with
    `accumulate`, it is the same up to rounding. `fit` differs there: masked values (`Masking`,
    `mask_zero`, `ignore_class`) and sample weights are divided by the count of the global batch,
    not by that of each replica, and `reduction="sum"` is the sum over the global batch. A loss that
    is one value for the batch (Dice, Tversky, Circle, a function that returns a scalar) is that of
    the global batch on several replicas. With `accumulate`, and with `jit=True` on several
    replicas, it is refused.

    Args:
      model: Model that maps `x` to predictions. Losses that its layers add count too.
      loss: Keras loss, its name, or any `loss(y_true, y_pred)` that returns one value or one value
        for each example. It is reduced and weighted as `fit` does. For a model with several
        outputs: a mapping or a sequence of these, or None for an output without a loss. The losses
        are then named after the outputs, and `y` and `sample_weight` may have the same structure.

    Returns:
      A model for `tfloss.Trainer`, named `supervised_<name of the model>`.

    Raises:
      LossError: The loss has `reduction=None`, so that it is not one number.
    """
    return _Supervised(model, loss)


class _Supervised(keras.Model):
    def __init__(self, model: keras.Model, loss: Any):
        super().__init__(name=f"supervised_{model.name}")
        self.predictor = model
        self._of_outputs = isinstance(loss, Mapping | list | tuple)
        named = self._by_name(loss) if self._of_outputs else {"": loss}
        self._functions = {k: _loss_function(one) for k, one in named.items() if one is not None}

    def call(self, batch: Any, training: bool = False) -> Any:
        x, *rest = cast(tuple[Any, ...], batch) if isinstance(batch, tuple) else (batch,)
        if not training:
            return self.predictor(x, training=False)
        if len(rest) not in (1, 2):
            raise DataError(
                "adapters.supervised needs batches (x, y) or (x, y, sample_weight), got "
                f"{_describe(batch)}. Map the data set to such tuples."
            )
        predictions, (y, *weights) = self.predictor(x, training=True), rest
        if not self._of_outputs:
            (function,) = self._functions.values()
            return {function.name: keras_loss(function, y, predictions, *weights)}
        losses: dict[str, tf.Tensor] = {}
        for name, function in self._functions.items():
            y_pred = self._part("the predictions", predictions, name)
            y_true = self._part("y", y, name)
            own_weights = [self._part("sample_weight", one, name) for one in weights]
            losses[name] = keras_loss(function, y_true, y_pred, *own_weights)
        return losses

    def _by_name(self, parts: Any) -> Mapping[str, Any]:
        """Returns the parts for each output by its name."""
        if isinstance(parts, Mapping):
            return cast(Mapping[str, Any], parts)
        values = list(cast(Sequence[Any], parts))
        names: list[str] = getattr(self.predictor, "output_names", None) or []
        if len(names) != len(values):
            names = [str(index) for index in range(len(values))]
        return dict(zip(names, values, strict=True))

    def _part(self, what: str, parts: Any, name: str) -> Any:
        """Returns the part for one output. Sample weights may be shared by all outputs."""
        if not isinstance(parts, Mapping | list | tuple):
            if what == "sample_weight":
                return parts
            raise LossError(
                f"adapters.supervised has losses for the outputs {', '.join(self._functions)}, but "
                f"{what} have no such parts: they are {_describe(parts)}."
            )
        named = self._by_name(parts)
        if name not in named:
            raise LossError(
                f"adapters.supervised has a loss for the output {name!r}, which is not in {what}. "
                f"They have: {', '.join(named)}."
            )
        return named[name]


def _loss_function(loss: Any) -> keras.losses.Loss:
    found: Any = keras.losses.get(loss)
    function = found if isinstance(found, keras.losses.Loss) else _FunctionLoss(found)
    if function.reduction in (None, "none"):
        raise LossError(
            f"Loss {function.name!r} has reduction=None, so it is not one number. `fit` takes the "
            "gradient of the sum of its values. Choose reduction='sum' for the same, or "
            "'sum_over_batch_size' for their mean."
        )
    return function


class _FunctionLoss(keras.losses.Loss):
    """A plain `loss(y_true, y_pred)` with Keras's reduction and sample weights."""

    def __init__(self, function: Callable[[Any, Any], Any]):
        # TensorFlow refuses a scope that begins with "_", and "<lambda>".
        super().__init__(name=getattr(function, "__name__", "").strip("<>_") or "loss")
        self.function = function

    def call(self, y_true: Any, y_pred: Any) -> tf.Tensor:
        return self.function(y_true, y_pred)


def _describe(batch: Any) -> str:
    if isinstance(batch, tuple):
        return f"a tuple of {len(cast(tuple[Any, ...], batch))}"
    return f"a {type(batch).__name__}"
