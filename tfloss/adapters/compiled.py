"""A compiled Keras model becomes a model that reports its losses.

model.compile(optimizer, loss={"box": "huber", "class": "mse"}, metrics={"class": "accuracy"})
trainer = tfloss.Trainer(tfloss.adapters.from_compiled(model), model.optimizer)
trainer.train(data, steps=1_000)
trainer.evaluate(test_set)             # {"loss": ..., "box_loss": ..., "class_accuracy": ...}
"""

import dataclasses
import functools
import inspect
from typing import Any, cast

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.adapters.batch_loss_means import BatchLossMeans
from tfloss.adapters.output_losses import OutputLosses
from tfloss.adapters.supervised import inputs_of, split_batch
from tfloss.errors import ModelError
from tfloss.evaluation.metrics import BoundMetric
from tfloss.forward.context import as_in_fit, current_context
from tfloss.forward.global_batch import global_sum
from tfloss.inspect.python_values import names_read
from tfloss.inspect.traceback_filtering import filtered_tracebacks


@filtered_tracebacks
def from_compiled(model: keras.Model) -> keras.Model:
    """Makes a model that reports the losses of a compiled Keras model, as they are.

    Batches are what `fit` takes: `(x, y)` or `(x, y, sample_weight)`, or `x` alone for a model
    compiled without a loss. Losses are named and weighted as by `supervised`, with the
    `loss_weights` of `compile`. An added loss that isn't a scalar is summed, as in `fit`, and over
    the global batch.

    A model with its own `compute_loss` reports what that returns, as "loss". As in `fit`,
    regularizers and added losses then count only if it uses them. A `train_step` that only changes
    the batch and calls `super().train_step(batch)` is called. Both run outside of the calls of all
    layers, as in `fit`: a layer that they call without `training=` is in inference mode. Runs on
    the host.

    `Trainer.evaluate(data)` then gives the compiled metrics and losses by Keras's names, computed
    by the inference forward: `loss` with regularizers and added losses, `<output>_loss` without
    weights, metrics and weighted metrics. Each loss is the mean over batches, weighted by their
    numbers of examples. Keras does that for `loss` alone: in its `<output>_loss`, each batch counts
    once, a shorter last one too.

    The adapter uses the variables of the model, so the model itself is trained, and can be saved
    and used as before. What `fit` itself does is left out: `class_weight`, and the preprocessing
    that a KerasHub task does in `fit`. Map the data set instead: `data.map(task.preprocessor)`.

    Args:
      model: A compiled model. Give its `optimizer` to the Trainer, too.

    Returns:
      A model for `tfloss.Trainer`, named `compiled_<name of the model>`.

    Raises:
      ModelError: The model isn't compiled, or has a `train_step` that computes gradients.
      LossError: A loss has `reduction=None`, so that it is not one number.
    """
    if not model.compiled:
        raise ModelError(
            f"Model {model.name!r} is not compiled. Call model.compile(optimizer, loss) first, or "
            "use adapters.supervised(model, loss)."
        )
    step = _upstream.own_method(model, "train_step")
    if step is not None:
        _check_passes_on(model, step)
    return _Compiled(model)


class _Compiled(keras.Model):
    """A compiled model that reports its losses in training."""

    def __init__(self, model: keras.Model):
        super().__init__(name=f"compiled_{model.name}")
        self.predictor = model
        given = _upstream.compiled_losses(model)
        self._losses_of_outputs = None if given is None else OutputLosses(*given)
        self._own_step = _upstream.own_method(model, "train_step") is not None
        self._own_loss = _upstream.own_method(model, "compute_loss") is not None
        self._evaluation: dict[str, BoundMetric] | None = None

    def call(self, batch: Any, training: bool = False) -> Any:
        if not training:
            return self.predictor(inputs_of(batch), training=False)
        if self._own_step or self._own_loss:
            with as_in_fit():
                losses = self._losses_by_own_methods(batch)
        else:
            losses = self._training_losses(batch)
        _sum_added_losses()
        return losses

    def _losses_by_own_methods(self, batch: Any) -> Any:
        """Returns the losses of a batch by the model's `train_step` and `compute_loss`. Traced."""
        if not self._own_step:
            return self._training_losses(batch)
        reported: list[Any] = []

        def instead_of_update(model: keras.Model, data: Any) -> dict[str, Any]:
            # In fit, the tape is opened after what the model's train_step does with the batch.
            constant = tf.nest.map_structure(_constant, data, expand_composites=True)
            reported.append(self._training_losses(constant))
            return {}

        with _upstream.base_train_step_replaced(instead_of_update):
            self.predictor.train_step(batch)
        if len(reported) != 1:
            raise ModelError(_refusal(self.predictor, self.predictor.train_step))
        return reported[0]

    def evaluation_metrics(self) -> dict[str, BoundMetric]:
        """Returns the compiled metrics and losses, for `Trainer.evaluate(data)`. Host code.

        Raises:
          ModelError: The model computes its evaluation in its own way.
        """
        for method in ("test_step", "compute_metrics"):
            if _upstream.own_method(self.predictor, method) is not None:
                raise ModelError(
                    f"Model {self.predictor.name!r} has its own {method}, so its compiled metrics "
                    "are not what its evaluate returns. Give them to the Trainer: "
                    "evaluate(data, {'accuracy': tfloss.metric(...)}), or "
                    "evaluate(data, {}, losses=True)."
                )
        if self._evaluation is None:
            names = [f"{name}_loss" for name in _upstream.compiled_output_names(self.predictor)]
            losses = BoundMetric(
                BatchLossMeans(),
                self._losses_of_inference,
                own_names=dict.fromkeys(["loss", *names], "min"),
                by_example=False,
            )
            self._evaluation = {"compiled losses": losses}
            metrics = _upstream.copied_metrics(self.predictor)
            if metrics is not None:
                modes = _upstream.compiled_metric_modes(self.predictor)
                bound = BoundMetric(metrics, _labels_and_predictions, own_names=modes)
                self._evaluation["compiled metrics"] = bound
        return self._evaluation

    def _training_losses(self, data: Any) -> Any:
        """Returns the losses of a batch. Added ones count by themselves. Replica code, traced."""
        if self._losses_of_outputs is None and not self._own_loss:
            self.predictor(inputs_of(data), training=True)
            return None
        if not self._own_loss:
            x, y, weight = split_batch(data, "from_compiled")
            losses = cast(OutputLosses, self._losses_of_outputs)
            return losses.named(y, self.predictor(x, training=True), weight)
        x, y, weight = _unpacked(data)
        total, _ = self._computed(x, y, self.predictor(x, training=True), weight, True)
        if (context := current_context()) is not None:
            context.only_returned = True  # as fit: a compute_loss may leave out added losses
        return {"loss": total}

    def _computed(
        self, x: Any, y: Any, predictions: Any, weight: Any, training: bool
    ) -> tuple[Any, list[dict[str, Any]]]:
        """Returns `compute_loss` of the model, and the losses of the outputs at each use."""
        losses = self._losses_of_outputs
        seen: list[dict[str, Any]] = []
        instead = None if losses is None else functools.partial(losses.total, seen=seen)
        with _upstream.compiled_loss_replaced(self.predictor, instead):
            total = _upstream.loss_of_batch(self.predictor, x, y, predictions, weight, training)
        return total, seen

    def _losses_of_inference(self, batch: Any, predictions: Any) -> dict[str, Any]:
        """Returns the losses of a whole batch by Keras's names. Traced, cross-replica."""
        predictions = tf.nest.map_structure(tf.convert_to_tensor, predictions)  # so they are needed
        x, y, weight = _unpacked(batch)
        if _upstream.adds_losses(self.predictor):  # those of the last forward are in another graph
            predictions = self.predictor(x, training=False)
        total, seen = self._computed(x, y, predictions, weight, False)
        losses = {"loss": total}
        for name in dict.fromkeys(name for named in seen if len(named) > 1 for name in named):
            values = [named[name] for named in seen if name in named]
            losses[f"{name}_loss"] = sum(values[1:], values[0]) / len(values)
        first = next(one for one in tf.nest.flatten(x) if one is not None)
        return {"values": losses, "sample_weight": tf.shape(first)[0]}


def _labels_and_predictions(batch: Any, predictions: Any) -> tuple[Any, ...]:
    _, y, weight = _unpacked(batch)
    return (y, predictions) if weight is None else (y, predictions, weight)


def _sum_added_losses() -> None:
    """Adds up each added loss that isn't a scalar, as fit does: over the global batch. Traced."""
    if (context := current_context()) is None:
        return
    for i, added in enumerate(context.losses):
        if tf.convert_to_tensor(added.value).shape.rank != 0:
            context.losses[i] = dataclasses.replace(added, value=global_sum(added.value))


def _constant(value: Any) -> Any:
    """A tensor without a gradient, with the mask that it carries."""
    if not tf.is_tensor(value):
        return value
    mask = _upstream.mask_of(value)
    constant = tf.stop_gradient(value)
    return constant if mask is None else _upstream.with_mask(constant, mask)


def _unpacked(batch: Any) -> tuple[Any, Any, Any]:
    parts = cast(tuple[Any, ...], batch) if isinstance(batch, tuple) else (batch,)
    x, y, weight, *_ = (*parts, None, None)
    return x, y, weight


def _check_passes_on(model: keras.Model, step: Any) -> None:
    """Raises ModelError unless a `train_step` only changes the batch of Keras's own."""
    read = names_read(step)
    gradients = {"GradientTape", "gradient", "apply_gradients", "apply", "minimize"}
    if "train_step" not in read or gradients & set(read):
        raise ModelError(_refusal(model, step))


def _refusal(model: keras.Model, step: Any) -> str:
    code = inspect.unwrap(step).__code__
    kind = type(model).__name__
    return (
        f"{kind} has its own train_step ({code.co_filename}:{code.co_firstlineno}), which computes "
        "the update itself. A trainer can't look into it. Change three lines of it, and train the "
        "model without an adapter, tfloss.Trainer(model, optimizer):\n"
        f"  1. `def train_step(self, data):` becomes `def call(self, batch, training=False):`, and "
        "begins with `if not training: return <predictions>`.\n"
        "  2. `return {...}` becomes `return {'loss': loss}`, with all losses by name.\n"
        "  3. The lines with tape.gradient and optimizer.apply_gradients go, and so do those that "
        "update metrics.\n"
        "With several optimizers, give the Trainer groups: {'generator': (optimizer, layers), ...}."
        " For several updates in a step, subclass tfloss.TrainStep."
    )
