"""A predictor and a loss function in the order of fastai become a model that reports its loss.

model = tfloss.adapters.fastai_style(net, lambda pred, target: tf.reduce_mean((pred - target) ** 2))
"""

from collections.abc import Callable
from typing import Any, cast

import keras

from tfloss.errors import DataError
from tfloss.inspect.traceback_filtering import filtered_tracebacks


@filtered_tracebacks
def fastai_style(
    model: keras.Model, loss_func: Callable[..., Any], *, n_inputs: int = 1
) -> keras.Model:
    """Makes a model that reports `loss_func(pred, *targets)`, as fastai's `Learner` computes it.

    A batch is a tuple whose first `n_inputs` parts are the inputs and whose others are the targets.
    A batch that is no tuple is the only input. In training the model returns what `loss_func`
    returns, in inference the predictions; there, the targets may be missing. Runs on the host.

    With the identity, `lambda pred, *targets: pred`, a model that owns its losses trains as it does
    alone, bit for bit. So a trainer that asks for a loss function can do nothing
    that this one can't.

    Args:
      model: Model that maps the input, or the tuple of `n_inputs` inputs, to predictions. Losses
        that its layers add count too.
      loss_func: Function of the predictions and the targets. It returns a scalar, or a mapping of
        named scalars. On several replicas it gets the part of the batch of one replica; divide by
        counts with `tfloss.global_mean`.
      n_inputs: Number of inputs, as fastai's `DataLoaders.n_inp`.

    Returns:
      A model for `tfloss.Trainer`, named `fastai_style_<name of the model>`.

    Raises:
      ValueError: The function is a Keras loss, which takes the labels first, or `n_inputs` is not
        positive.
    """
    if isinstance(loss_func, keras.losses.Loss) or _is_of_keras(loss_func):
        raise ValueError(
            f"{getattr(loss_func, '__name__', type(loss_func).__name__)} is a loss of Keras, which "
            "takes (y_true, y_pred). Use adapters.supervised(model, loss), or write "
            "`lambda pred, target: loss(target, pred)`."
        )
    if n_inputs < 1:
        raise ValueError(f"n_inputs must be at least 1, got {n_inputs}.")
    return _FastaiStyle(model, loss_func, n_inputs)


class _FastaiStyle(keras.Model):
    """A predictor with a function of predictions and targets."""

    def __init__(self, model: keras.Model, loss_func: Callable[..., Any], n_inputs: int):
        super().__init__(name=f"fastai_style_{model.name}")
        self.predictor = model
        self._loss_func, self._n_inputs = loss_func, n_inputs

    def call(self, batch: Any, training: bool = False) -> Any:
        parts = [*cast(tuple[Any, ...], batch)] if isinstance(batch, tuple) else [batch]
        inputs, targets = parts[: self._n_inputs], parts[self._n_inputs :]
        if len(inputs) < self._n_inputs:
            raise DataError(
                f"adapters.fastai_style(n_inputs={self._n_inputs}) needs batches that are tuples "
                f"of at least {self._n_inputs} parts, got {len(parts)}. Map the data set to such "
                "tuples: inputs first, then targets."
            )
        x = inputs[0] if self._n_inputs == 1 else tuple(inputs)
        predictions = self.predictor(x, training=training)
        return self._loss_func(predictions, *targets) if training else predictions


def _is_of_keras(function: Any) -> bool:
    return getattr(keras.losses, getattr(function, "__name__", ""), None) is function
