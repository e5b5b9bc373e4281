"""Adapters for models that do not report their losses themselves.

trainer = tfloss.Trainer(tfloss.adapters.supervised(net, "mse"), optimizer)
trainer.train(dataset_of_x_y, steps=1_000)
"""

from collections.abc import Callable
from typing import Any, cast

import keras
import tensorflow as tf

from tfloss.errors import DataError


def supervised(
    model: keras.Model, loss: str | keras.losses.Loss | Callable[[Any, Any], Any]
) -> keras.Model:
    """Makes a model that reports its own loss from a predictor and a loss function.

    Batches are `(x, y)` or `(x, y, sample_weight)`, as for `keras.Model.fit`. In training the model
    returns `{<name of the loss>: loss(y, model(x))}`, in inference `model(x)`. Inference also
    accepts `x` alone. Training is bit for bit that of `model.compile(loss=loss); model.fit(...)`;
    for Adam and AdamW this needs `Trainer(fused_adam=False)`. Runs on the host.

    Args:
      model: Model that maps `x` to predictions. Losses that its layers add count too.
      loss: Keras loss, its name, or any `loss(y_true, y_pred)` that returns one value or one value
        for each example. It is reduced and weighted as `fit` does.

    Returns:
      A model for `tfloss.Trainer`, named `supervised_<name of the model>`.
    """
    return _Supervised(model, loss)


class _Supervised(keras.Model):
    def __init__(self, model: keras.Model, loss: Any):
        super().__init__(name=f"supervised_{model.name}")
        found: Any = keras.losses.get(loss)
        self.predictor = model
        self.loss_function = found if isinstance(found, keras.losses.Loss) else _FunctionLoss(found)

    def call(self, batch: Any, training: bool = False) -> Any:
        x, *rest = cast(tuple[Any, ...], batch) if isinstance(batch, tuple) else (batch,)
        if not training:
            return self.predictor(x, training=False)
        if len(rest) not in (1, 2):
            raise DataError(
                "adapters.supervised needs batches (x, y) or (x, y, sample_weight), got "
                f"{_describe(batch)}. Map the data set to such tuples."
            )
        predictions = self.predictor(x, training=True)
        return {self.loss_function.name: self.loss_function(rest[0], predictions, *rest[1:])}


class _FunctionLoss(keras.losses.Loss):
    """A plain `loss(y_true, y_pred)` with Keras's reduction and sample weights."""

    def __init__(self, function: Callable[[Any, Any], Any]):
        super().__init__(name=getattr(function, "__name__", "loss").strip("<>"))
        self._function = function

    def call(self, y_true: Any, y_pred: Any) -> tf.Tensor:
        return self._function(y_true, y_pred)


def _describe(batch: Any) -> str:
    if isinstance(batch, tuple):
        return f"a tuple of {len(cast(tuple[Any, ...], batch))}"
    return f"a {type(batch).__name__}"
