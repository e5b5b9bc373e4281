"""Metrics of an evaluation: Keras metrics bound to their arguments, and metrics in plain Python.

accuracy = tfloss.metric(
    keras.metrics.SparseCategoricalAccuracy(),
    lambda batch, predictions: (batch["label"], predictions["probabilities"]),
)
"""

import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias, cast, runtime_checkable

import keras
import numpy as np
import tensorflow as tf

from tfloss import _upstream
from tfloss.errors import MetricError
from tfloss.inspect.source_lines import is_library
from tfloss.inspect.traceback_filtering import filtered_tracebacks, short_message

# Whether lower or higher values of a metric are better.
Mode: TypeAlias = Literal["min", "max"]


@runtime_checkable
class HostMetric(Protocol):
    """A metric in plain Python, for what does not fit a Keras metric, such as mAP. Host code.

    Besides the two methods, it must have `reset()`, or `reset_state()` as in Keras. This method is
    called before each evaluation and must clear everything that `update` has collected.

    A metric whose `update(batch)` takes the batch alone doesn't need the inference forward. The
    attribute `mode`, "min" or "max", says whether lower or higher values are better. Without it,
    hooks that look for the best value must be told.
    """

    def update(self, batch: Any, predictions: Any) -> None:
        """Adds a batch.

        Args:
          batch: The batch, a nest of NumPy arrays.
          predictions: Its predictions, a nest of NumPy arrays.
        """
        ...

    def result(self) -> Any:
        """Returns a number, an array or a (nested) mapping of them."""
        ...


class BoundMetric:
    """A Keras metric and the function that selects its arguments. Made by `tfloss.metric`.

    Attributes:
      metric: The Keras metric.
      arguments: Function from batch and predictions to the arguments of `metric.update_state`.
      own_names: `{name: mode}` of the results of a metric that names them itself, as far as they
        are known in advance. None: the names begin with that of the metric.
      by_example: Whether every example must count once. If not, the metric is defined by batches.
    """

    def __init__(
        self,
        metric: keras.Metric,
        arguments: Callable[[Any, Any], Any],
        *,
        own_names: Mapping[str, Mode | None] | None = None,
        by_example: bool = True,
    ):
        """Binds a metric.

        Args:
          metric: Any Keras metric.
          arguments: See `tfloss.metric`.
          own_names: See above.
          by_example: See above.
        """
        self.metric = metric
        self.arguments = arguments
        self.own_names = own_names
        self.by_example = by_example

    def outside_scope(self) -> "BoundMetric":
        """Returns this metric, or a copy of it if its variables are replicated. Host code.

        Metrics are updated with whole batches, not on the replicas, where replicated variables
        can't be assigned.
        """
        variables = self.metric.variables
        if not any(isinstance(v.value, tf.distribute.DistributedValues) for v in variables):
            return self
        return BoundMetric(
            _upstream.copy_metric(self.metric),
            self.arguments,
            own_names=self.own_names,
            by_example=self.by_example,
        )


@filtered_tracebacks
def metric(metric: keras.Metric, arguments: Callable[[Any, Any], Any]) -> BoundMetric:
    """Binds a Keras metric to a batch and its predictions. Runs on the host.

    Args:
      metric: Any Keras metric.
      arguments: Function from (batch, predictions) to the arguments of `metric.update_state`: a
        tuple (positional), a mapping (by name) or one tensor. It runs traced, on whole batches,
        and several times. If it uses only the batch, the inference forward need not run for it.

    Returns:
      The metric, for `Trainer.evaluate` and `hooks.Evaluate`.

    Raises:
      TypeError: `metric` is not a Keras metric, or `arguments` can't be called with two values.
    """
    given: Any = metric
    if isinstance(given, type):
        raise TypeError(f"metric is the class {given.__name__}. Write {given.__name__}().")
    if not isinstance(given, keras.Metric):
        raise TypeError(
            f"metric must be a keras.Metric, got {type(given).__name__}. Write "
            "keras.metrics.SparseCategoricalAccuracy(), for instance."
        )
    if not accepts(arguments, 2):
        raise TypeError(
            "arguments must be a function of (batch, predictions) that returns the arguments of "
            "update_state, such as lambda batch, predictions: (batch['label'], predictions)."
        )
    return BoundMetric(metric, arguments)


def own_metrics(model: keras.Model) -> dict[str, BoundMetric]:
    """Returns the metrics that a model owns: those of its method `evaluation_metrics`. Host code.

    Args:
      model: The model. It need not have any.
    """
    method: Any = getattr(model, "evaluation_metrics", None)
    found: Any = method() if callable(method) else {}
    return dict(found)


def check_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Checks that an evaluation can use these metrics together. Host code.

    Args:
      metrics: Metrics by name, as the user passed them.

    Returns:
      The metrics by name.

    Raises:
      TypeError: They are no mapping, or one is neither made by `tfloss.metric` nor a `HostMetric`
        that can be reset.
      ValueError: Two names stand for one metric object, whose values would be mixed.
    """
    if not isinstance(cast(Any, metrics), Mapping):
        raise TypeError(
            "metrics must be a mapping {name: tfloss.metric(keras_metric, lambda batch, "
            f"predictions: (labels, predictions))}}, got {type(metrics).__name__}."
        )
    owners: dict[int, str] = {}
    for name, metric in metrics.items():
        _check_type(name, metric)
        counted = metric.metric if isinstance(metric, BoundMetric) else metric
        other = owners.setdefault(id(counted), name)
        if other is not name:
            raise ValueError(
                f"Metrics {other!r} and {name!r} are the same {type(counted).__name__} object, so "
                "their values would be mixed. Create one object for each name."
            )
    return dict(metrics)


def _check_type(name: str, metric: Any) -> None:
    if isinstance(metric, BoundMetric):
        return
    if not isinstance(metric, HostMetric) or isinstance(metric, type):
        hint = ""
        if isinstance(metric, keras.Metric):
            hint = " Bind it with tfloss.metric(...)."
        elif callable(metric) and not isinstance(metric, type):
            hint = (
                " A function (labels, predictions) with a value for each example becomes one: "
                "tfloss.metric(keras.metrics.MeanMetricWrapper(function), lambda batch, "
                "predictions: (batch['label'], predictions))."
            )
        what = f"the class {metric.__name__}" if isinstance(metric, type) else type(metric).__name__
        raise TypeError(
            f"Metric {name!r} must be made by tfloss.metric(...) or have update() and result(), "
            f"got {what}.{hint}"
        )
    if not (accepts(metric.update, 1) or accepts(metric.update, 2)):
        raise TypeError(
            f"Metric {name!r}: {type(metric).__name__}.update"
            f"{inspect.signature(metric.update)} must take (batch, predictions), or the batch "
            "alone. Both are nests of NumPy arrays."
        )
    if _reset_method(metric) is None:
        raise TypeError(
            f"Metric {name!r} ({type(metric).__name__}) has neither reset() nor reset_state(), so "
            "each evaluation would add to the last one. Add `def reset(self)`, which clears what "
            "update() has collected. If there is nothing to clear, let it do nothing."
        )


def own_names(metric: BoundMetric | HostMetric) -> Mapping[str, Mode | None] | None:
    """Returns `{name: mode}` of the results that a metric names itself, or None. Host code.

    Args:
      metric: Any metric. The names of its results begin with its own name if this is None.
    """
    return metric.own_names if isinstance(metric, BoundMetric) else None


def reset(metric: HostMetric) -> None:
    """Clears a metric in plain Python before an evaluation. Host code.

    Args:
      metric: Metric that `check_metrics` has accepted.
    """
    method = _reset_method(metric)
    if method is not None:
        method()


def metric_mode(metric: BoundMetric | HostMetric) -> Mode | None:
    """Returns whether lower ("min") or higher values ("max") are better; None if nobody knows.

    Args:
      metric: A metric of Keras itself knows it. A metric in plain Python may have it as `mode`.
    """
    if isinstance(metric, BoundMetric):
        return _upstream.metric_mode(metric.metric)
    mode: Any = getattr(metric, "mode", None)
    return mode if mode in ("min", "max") else None


def takes_predictions(metric: HostMetric) -> bool:
    """Returns whether `metric.update` takes predictions, not only the batch. Host code.

    Args:
      metric: Metric in plain Python.
    """
    return accepts(metric.update, 2)


def accepts(function: Callable[..., Any], count: int) -> bool:
    """Returns whether a function can be called with so many values.

    Args:
      function: Any function. One that has no signature is taken to accept them.
      count: Number of positional arguments.
    """
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def _reset_method(metric: HostMetric) -> Callable[[], Any] | None:
    methods = (getattr(metric, name, None) for name in ("reset", "reset_state"))
    return next((method for method in methods if callable(method)), None)


def flat_results(name: str, value: Any) -> dict[str, float]:
    """Flattens the result of a metric.

    Args:
      name: Name of the metric.
      value: A number, an array or a (nested) mapping of them.

    Returns:
      `{name: value}`, with `name/key` for a mapping and `name/index` for an array. With an empty
      name, the keys alone.
    """
    if isinstance(value, Mapping):
        items = cast(Mapping[Any, Any], value).items()
    else:
        array = np.asarray(value)
        if not array.ndim:
            return {name: float(array)}
        items = enumerate(array)
    return {
        k: v
        for key, one in items
        for k, v in flat_results(f"{name}/{key}" if name else str(key), one).items()
    }


def metric_error(name: str, error: Exception, batch: Any, predictions: Any) -> MetricError:
    """Makes the error of a metric that failed, with the contents of batch and predictions.

    Args:
      name: Name of the metric.
      error: Error that it raised.
      batch: The batch.
      predictions: Its predictions.
    """
    text = short_message(str(error)) if isinstance(error, tf.errors.OpError) else str(error)
    lines = ", ".join(_own_lines(error))
    return MetricError(
        f"Metric {name!r} failed with {type(error).__name__}: {text}\n"
        + (f"  at: {lines}\n" if lines else "")
        + f"  batch: {describe_nest(batch)}\n"
        f"  predictions: {describe_nest(predictions)}"
    )


def _own_lines(error: BaseException) -> list[str]:
    """The last lines of the user's code that an error has passed, innermost last."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not is_library(frame.filename)]
    return [f"{frame.filename}:{frame.lineno} (in {frame.name})" for frame in own[-4:]]


def describe_nest(nest: Any) -> str:
    """Describes keys, dtypes and shapes of a nest of tensors or arrays.

    Args:
      nest: Nest of mappings, tuples and lists.

    Returns:
      A text such as `{'image': float32 [None, 28, 28], 'boxes': (...)}`.
    """
    if isinstance(nest, Mapping):
        items = cast(Mapping[Any, Any], nest).items()
        return "{" + ", ".join(f"{k!r}: {describe_nest(v)}" for k, v in items) + "}"
    if isinstance(nest, tuple | list):
        values = cast(Sequence[Any], nest)
        names = [f"{name}=" for name in getattr(nest, "_fields", ())] or [""] * len(values)
        parts = [name + describe_nest(v) for name, v in zip(names, values, strict=True)]
        return "(" + ", ".join(parts) + ")" if isinstance(nest, tuple) else f"[{', '.join(parts)}]"
    dtype, shape = getattr(nest, "dtype", None), getattr(nest, "shape", None)
    if dtype is None or shape is None:
        return type(nest).__name__
    return f"{tf.as_dtype(dtype).name} {[*shape] if shape.rank is not None else 'of any rank'}"
