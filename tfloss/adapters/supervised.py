"""A predictor and a loss function become a model that reports its loss.

trainer = tfloss.Trainer(tfloss.adapters.supervised(net, "mse"), optimizer)
trainer.train(dataset_of_x_y, steps=1_000)
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import keras

from tfloss.adapters.output_losses import OutputLosses
from tfloss.errors import DataError
from tfloss.inspect.traceback_filtering import filtered_tracebacks

Loss = str | keras.losses.Loss | Callable[..., Any]


@filtered_tracebacks
def supervised(
    model: keras.Model,
    loss: Loss | Mapping[str, Any] | Sequence[Any],
    *,
    loss_weights: float | Mapping[str, float] | Sequence[float] | None = None,
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
        outputs: what `compile` takes, such as a mapping or a sequence of these, with None for an
        output without a loss. The losses are then named after the outputs, and `y` and
        `sample_weight` may have the same structure. Or a function `loss(outputs, batch)`, whose
        second parameter is named `batch`. It returns a scalar or a mapping of named scalars, and
        gets the whole batch, which may be any nest. The model gets the first part of a tuple, and
        any other batch as it is.
      loss_weights: Weights of the losses, as `compile` takes them. Each loss is reported with its
        weight. To see losses without their weights, give the weights to the Trainer instead.

    Returns:
      A model for `tfloss.Trainer`, named `supervised_<name of the model>`.

    Raises:
      LossError: The loss has `reduction=None`, so that it is not one number.
      ValueError: Keras has no loss of this name, or `loss_weights` are given for a
        `loss(outputs, batch)`.
    """
    if _takes_batch(loss):
        if loss_weights is not None:
            raise ValueError(
                "loss_weights need losses by output. A function loss(outputs, batch) returns "
                "named losses: give their weights to the Trainer, Trainer(loss_weights={...})."
            )
        return _OfBatch(model, cast(Callable[[Any, Any], Any], loss))
    names = getattr(model, "output_names", None)
    return _Supervised(model, OutputLosses(loss, loss_weights, names))


def split_batch(batch: Any, adapter: str) -> tuple[Any, Any, Any]:
    """Splits a batch into `x`, `y` and `sample_weight`, which may be None.

    Args:
      batch: A batch for training.
      adapter: Name of the adapter, for the message.

    Raises:
      DataError: It is not `(x, y)` or `(x, y, sample_weight)`.
    """
    parts = [*cast(tuple[Any, ...], batch)] if isinstance(batch, tuple) else [batch]
    if len(parts) not in (2, 3):
        raise DataError(
            f"adapters.{adapter} needs batches (x, y) or (x, y, sample_weight), got "
            f"{_describe(batch)}. Map the data set to such tuples."
        )
    return parts[0], parts[1], parts[2] if len(parts) == 3 else None


def inputs_of(batch: Any) -> Any:
    """Returns `x` of a batch: the first part of a tuple, and any other batch as it is.

    Args:
      batch: A batch, or `x` alone.
    """
    return cast(tuple[Any, ...], batch)[0] if isinstance(batch, tuple) else batch


class _Supervised(keras.Model):
    """A predictor with the losses of its outputs."""

    def __init__(self, model: keras.Model, losses: OutputLosses):
        super().__init__(name=f"supervised_{model.name}")
        self.predictor = model
        self._losses_of_outputs = losses

    def call(self, batch: Any, training: bool = False) -> Any:
        if not training:
            return self.predictor(inputs_of(batch), training=False)
        x, y, sample_weight = split_batch(batch, "supervised")
        return self._losses_of_outputs.named(y, self.predictor(x, training=True), sample_weight)


class _OfBatch(keras.Model):
    """A predictor with a function of its outputs and the batch."""

    def __init__(self, model: keras.Model, loss: Callable[[Any, Any], Any]):
        super().__init__(name=f"supervised_{model.name}")
        self.predictor = model
        self._loss_of_batch = loss

    def call(self, batch: Any, training: bool = False) -> Any:
        outputs = self.predictor(inputs_of(batch), training=training)
        return self._loss_of_batch(outputs, batch) if training else outputs


def _takes_batch(loss: Any) -> bool:
    if not callable(loss) or isinstance(loss, keras.losses.Loss | type):
        return False
    try:
        return [*inspect.signature(loss).parameters][1:2] == ["batch"]
    except ValueError:  # it has no signature
        return False


def _describe(batch: Any) -> str:
    if isinstance(batch, tuple):
        return f"a tuple of {len(cast(tuple[Any, ...], batch))}"
    return f"a {type(batch).__name__}"
