"""Metrics of an evaluation: Keras metrics bound to their arguments, and metrics in plain Python.

accuracy = tfloss.metric(
    keras.metrics.SparseCategoricalAccuracy(),
    lambda batch, predictions: (batch["label"], predictions["probabilities"]),
)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import keras
import numpy as np
import tensorflow as tf

from tfloss.errors import MetricError


@runtime_checkable
class HostMetric(Protocol):
    """A metric in plain Python, for what does not fit a Keras metric, such as mAP. Host code.

    If the metric has a method `reset()`, it is called before each evaluation.
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
    """

    def __init__(self, metric: keras.Metric, arguments: Callable[[Any, Any], Any]):
        """Binds a metric.

        Args:
          metric: Any Keras metric.
          arguments: See `tfloss.metric`.
        """
        self.metric = metric
        self.arguments = arguments

    def __call__(self, batch: Any, predictions: Any) -> None:
        """Updates the metric. Runs traced, cross-replica, on whole batches.

        Args:
          batch: The batch.
          predictions: Its predictions.
        """
        arguments = self.arguments(batch, predictions)
        if isinstance(arguments, Mapping):
            self.metric.update_state(**cast(Mapping[str, Any], arguments))
        elif isinstance(arguments, tuple):
            self.metric.update_state(*cast(tuple[Any, ...], arguments))
        else:
            self.metric.update_state(arguments)

    def outside_scope(self) -> "BoundMetric":
        """Returns this metric, or a copy of it if its variables are replicated. Host code.

        Metrics are updated with whole batches, not on the replicas, where replicated variables
        can't be assigned.
        """
        if not any(
            isinstance(v.value, tf.distribute.DistributedValues) for v in self.metric.variables
        ):
            return self
        copy = type(self.metric).from_config(self.metric.get_config())
        return BoundMetric(copy, self.arguments)


def metric(metric: keras.Metric, arguments: Callable[[Any, Any], Any]) -> BoundMetric:
    """Binds a Keras metric to a batch and its predictions. Runs on the host.

    Args:
      metric: Any Keras metric.
      arguments: Function from (batch, predictions) to the arguments of `metric.update_state`: a
        tuple (positional), a mapping (by name) or one tensor. It runs traced, on whole batches.

    Returns:
      The metric, for `Trainer.evaluate` and `hooks.Evaluate`.

    Raises:
      TypeError: `metric` is not a Keras metric.
    """
    if not isinstance(cast(Any, metric), keras.Metric):
        raise TypeError(f"metric must be a keras.Metric, got {type(metric).__name__}.")
    return BoundMetric(metric, arguments)


def check_metric(name: str, metric: Any) -> None:
    """Checks that a value is a metric that an evaluation can use.

    Args:
      name: Name of the metric.
      metric: Value passed by the user.

    Raises:
      TypeError: It is neither a `BoundMetric` nor a `HostMetric`.
    """
    if not isinstance(metric, BoundMetric | HostMetric):
        hint = " Bind it with tfloss.metric(...)." if isinstance(metric, keras.Metric) else ""
        raise TypeError(
            f"Metric {name!r} must be made by tfloss.metric(...) or have update() and result(), "
            f"got {type(metric).__name__}.{hint}"
        )


def flat_results(name: str, value: Any) -> dict[str, float]:
    """Flattens the result of a metric.

    Args:
      name: Name of the metric.
      value: A number, an array or a (nested) mapping of them.

    Returns:
      `{name: value}`, with `name/key` for a mapping and `name/index` for an array.
    """
    if isinstance(value, Mapping):
        items = cast(Mapping[Any, Any], value).items()
    else:
        array = np.asarray(value)
        if not array.ndim:
            return {name: float(array)}
        items = enumerate(array)
    return {k: v for key, one in items for k, v in flat_results(f"{name}/{key}", one).items()}


def metric_error(name: str, error: Exception, batch: Any, predictions: Any) -> MetricError:
    """Makes the error of a metric that failed, with the contents of batch and predictions.

    Args:
      name: Name of the metric.
      error: Error that it raised.
      batch: The batch.
      predictions: Its predictions.
    """
    return MetricError(
        f"Metric {name!r} failed with {type(error).__name__}: {error}\n"
        f"  batch: {describe_nest(batch)}\n"
        f"  predictions: {describe_nest(predictions)}"
    )


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
