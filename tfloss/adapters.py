"""Models that do not report their losses, made to: `trainer_good(supervised(model, loss))`.

trainer = tfloss.Trainer(tfloss.adapters.supervised(net, "mse"), optimizer)
trainer.train(dataset_of_x_y, steps=1_000)
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfloss.errors import DataError


def supervised(
    model: keras.Model, loss: str | keras.losses.Loss | Callable[[Any, Any], Any]
) -> keras.Model:
    """A model that reports its own loss, from a predictor and a loss function.

    Batches are `(x, y)` or `(x, y, sample_weight)`, as for `keras.Model.fit`. In training it
    returns `{<the loss's name>: loss(y, model(x))}`, in inference `model(x)`; inference also
    takes a bare `x`. Training it is bit for bit `model.compile(loss=loss); model.fit(...)`,
    of Adam and AdamW with `Trainer(fused_adam=False)`.

    Args:
      model: maps `x` to predictions. What its layers `add_loss` counts too.
      loss: a Keras loss, its name, or any `loss(y_true, y_pred)` that returns one value or
        one value an example; reduced and weighted as `fit` does.
    """
    return _Supervised(model, loss)


class _Supervised(keras.Model):
    def __init__(self, model: keras.Model, loss: Any):
        super().__init__(name=f"supervised_{model.name}")
        found: Any = keras.losses.get(loss)
        self.predictor = model
        self.loss_function = found if isinstance(found, keras.losses.Loss) else _Function(found)

    def call(self, batch: Any, training: bool = False) -> Any:
        x, *rest = batch if isinstance(batch, tuple) else (batch,)
        if not training:
            return self.predictor(x, training=False)
        if len(rest) not in (1, 2):
            raise DataError(
                "adapters.supervised trains on batches (x, y) or (x, y, sample_weight); this one "
                f"is {_kind(batch)}. Map the data set to such tuples."
            )
        predictions = self.predictor(x, training=True)
        return {self.loss_function.name: self.loss_function(rest[0], predictions, *rest[1:])}


class _Function(keras.losses.Loss):
    """A plain `loss(y_true, y_pred)` with Keras's reduction and sample weights."""

    def __init__(self, function: Callable[[Any, Any], Any]):
        super().__init__(name=getattr(function, "__name__", "loss").strip("<>"))
        self._function = function

    def call(self, y_true: Any, y_pred: Any) -> tf.Tensor:
        return self._function(y_true, y_pred)


def _kind(batch: Any) -> str:
    if isinstance(batch, tuple):
        return f"a tuple of {len(batch)}"
    return f"a {type(batch).__name__}"
