"""How `compile` and `fit` find the loss of each output, and how a model changes that.

Keras has no public way to ask which loss belongs to which output, label and sample weight.
"""

# This package is the place for private attributes.
# pyright: reportPrivateUsage=false

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

import keras
from keras.src.losses.losses import LossFunctionWrapper
from keras.src.trainers import compile_utils
from keras.src.trainers.compile_utils import CompileLoss, CompileMetrics

from tfloss._upstream.keras_metrics import Mode, copy_metric, metric_mode
from tfloss._upstream.patching import replaced


class OutputLoss(NamedTuple):
    """The loss of one output, and what it is computed of.

    Attributes:
      name: Name of the output, or None if the model has one output without a name.
      loss: The Keras loss. Names and functions are wrapped, as `compile` does.
      weight: Weight of `loss_weights`, or None.
      y_true: Labels of this output.
      y_pred: Predictions of this output.
      sample_weight: Sample weights of this output, or None.
    """

    name: str | None
    loss: keras.losses.Loss
    weight: Any
    y_true: Any
    y_pred: Any
    sample_weight: Any


def output_losses(
    loss: Any, loss_weights: Any, output_names: Any, y_true: Any, y_pred: Any, sample_weight: Any
) -> list[OutputLoss]:
    """Finds labels, predictions and sample weights of each loss. Computes no loss. Traced.

    Args:
      loss: Losses in any structure that `compile` takes.
      loss_weights: Their weights, as `compile` takes them, or None.
      output_names: Names of the model's outputs, or None.
      y_true: Labels, in any structure that `fit` takes.
      y_pred: Predictions.
      sample_weight: Sample weights, or None.

    Raises:
      KeyError, ValueError, TypeError: The structures don't fit.
    """
    compiled: Any = CompileLoss(loss, loss_weights, output_names=output_names)
    if not output_names and keras.tree.is_nested(y_pred) and not isinstance(y_pred, dict):
        # Keras would name all of them after their loss.
        compiled.output_names = [str(i) for i, _ in enumerate(keras.tree.flatten(y_pred))]
    found: list[OutputLoss] = []

    def remembering(one: Any) -> Callable[..., Any]:
        def remember(y: Any, p: Any, weight: Any) -> float:
            single = not one.path and not keras.tree.is_nested(y_pred)
            name = None if single else one.name
            found.append(OutputLoss(name, one.loss, one.loss_weights, y, p, weight))
            return 0.0

        return remember

    # `build` makes a variable for each loss, which nothing needs here.
    with replaced(compile_utils.metrics_module, "Mean", lambda _: lambda name: None):
        build = compiled.build

        def built(*arguments: Any) -> None:
            build(*arguments)
            losses: Any = compiled._flat_losses
            compiled._flat_losses = [one._replace(loss=remembering(one)) for one in losses]

        compiled.build = built
        compiled.call(y_true, y_pred, sample_weight)
    return found


def wraps_function(loss: keras.losses.Loss) -> bool:
    """Returns whether a loss is the wrapper that `compile` makes of a function or a name.

    Args:
      loss: A loss of `output_losses`.
    """
    return type(loss) is LossFunctionWrapper


def compiled_losses(model: keras.Model) -> tuple[Any, Any, Any] | None:
    """Returns what `compile` was given: losses, their weights, names of the outputs.

    Args:
      model: A compiled model. None is returned if it was compiled without a loss.
    """
    compiled = model._compile_loss
    if compiled is None:
        return None
    return compiled._user_loss, compiled._user_loss_weights, compiled.output_names


@contextmanager
def compiled_loss_replaced(
    model: keras.Model, function: Callable[..., Any] | None
) -> Generator[None]:
    """Makes `compute_loss` of a compiled model call this for the losses of its outputs.

    Args:
      model: The model.
      function: Function of `y_true`, `y_pred` and `sample_weight`. None: nothing is replaced.

    Yields:
      None.
    """
    if function is None:
        yield
        return
    with replaced(model, "_compile_loss", lambda _: function):
        yield


def loss_of_batch(
    model: keras.Model, x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool
) -> Any:
    """Returns `compute_loss` of a model, whose method may lack the argument `training`.

    Args:
      model: A compiled model.
      x: Inputs.
      y: Labels.
      y_pred: Predictions.
      sample_weight: Sample weights, or None.
      training: Value of the argument.
    """
    return model._compute_loss(x, y, y_pred, sample_weight, training=training)


def adds_losses(model: keras.Model) -> bool:
    """Returns whether the last forward pass called `add_loss`.

    Args:
      model: The model. The call must have been outside of tfloss's forward context, or silent.
    """
    return any(layer._losses for layer in model._flatten_layers())


def copied_metrics(model: keras.Model) -> keras.Metric | None:
    """Returns a copy of the metrics that `compile` was given, as one metric; None without any.

    Its result is a mapping with Keras's names. Its variables belong to the current scope. What
    `fit` has left in the metrics is forgotten: `CompileMetrics.reset_state` does nothing before its
    first update.

    Args:
      model: A compiled model.
    """
    compiled = model._compile_metrics
    if compiled is None:
        return None

    def copied(one: Any) -> Any:
        if not isinstance(one, keras.Metric):
            return one
        copy = copy_metric(one)
        copy.reset_state()
        return copy

    given: list[Any] = [
        keras.tree.map_structure(copied, metrics)
        for metrics in (compiled._user_metrics, compiled._user_weighted_metrics)
    ]
    metrics, weighted = given
    return CompileMetrics(metrics, weighted, output_names=compiled.output_names)


def compiled_output_names(model: keras.Model) -> list[str]:
    """Returns the names of the outputs that a compiled model names, or that `compile` was given.

    Args:
      model: A compiled model.
    """
    given: list[Any] = [list(getattr(model, "output_names", None) or [])]
    if model._compile_loss is not None:
        given.append(model._compile_loss._user_loss)
    if model._compile_metrics is not None:
        compiled = model._compile_metrics
        given += [compiled._user_metrics, compiled._user_weighted_metrics]
    names = given[0] + [key for one in given[1:] if isinstance(one, dict) for key in one]
    return list(dict.fromkeys(names))


def compiled_metric_modes(model: keras.Model) -> dict[str, Mode | None]:
    """Returns which direction of compiled metrics is better, by the names that Keras gives them.

    Keras makes metrics only when it sees their arguments, but hooks must know it before. So the
    names are those that are possible: with several outputs, that of the output comes first.

    Args:
      model: A compiled model.
    """
    compiled = model._compile_metrics
    if compiled is None:
        return {}
    outputs = compiled_output_names(model)
    found: dict[str, Mode | None] = {}
    for weighted, metrics in (
        ("", compiled._user_metrics),
        ("weighted_", compiled._user_weighted_metrics),
    ):
        for path, one in keras.tree.flatten_with_path(metrics or ()):
            if one is None:
                continue
            name, mode = _name_and_mode(one)
            of = [path[0]] if isinstance(metrics, dict) else outputs
            for end in {name, f"{weighted}{name}"}:
                for key in [end, *(f"{output}_{end}" for output in of)]:
                    found[key] = mode if found.get(key, mode) == mode else None
    return found


def _name_and_mode(metric: Any) -> tuple[str, Mode | None]:
    """Returns the name that Keras gives to a metric of `compile`, and its direction."""
    if str(metric).lower() in ("accuracy", "acc"):  # Keras chooses one by the shape of the labels
        return str(metric), "max"
    made = keras.metrics.get(metric)
    name = metric if isinstance(metric, str) else compile_utils.get_object_name(made)
    return name, metric_mode(made) if isinstance(made, keras.Metric) else None


def own_method(model: keras.Model, name: str) -> Any:
    """Returns the function with which a model's class overrides one of `keras.Model`; else None.

    Args:
      model: The model.
      name: Name of the method.
    """
    found: Any = getattr(type(model), name)
    return None if found is getattr(keras.Model, name) else found


@contextmanager
def base_train_step_replaced(function: Callable[[Any, Any], Any]) -> Generator[None]:
    """Replaces Keras's own `train_step`, which a model's own may call by `super()`.

    Args:
      function: Function of model and data.

    Yields:
      None.
    """
    owner = next(base for base in keras.Model.__mro__ if "train_step" in vars(base))
    with replaced(owner, "train_step", lambda _: function):
        yield
