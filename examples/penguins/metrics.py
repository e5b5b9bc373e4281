"""The metrics of each task, on the penguins whose label is known."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import keras
import tensorflow as tf

import tfloss


def metrics_of(tasks: Collection[str]) -> dict[str, Any]:
    """Makes the metrics of some tasks.

    Args:
      tasks: Names of tasks. "reconstruction" has no metric.

    Returns:
      `{name: metric}`: accuracies, and mean absolute errors in g ("mass") and per mille
      ("isotopes").
    """
    every = {
        "species": (keras.metrics.SparseCategoricalAccuracy(name="species_accuracy"), _labels),
        "sex": (keras.metrics.SparseCategoricalAccuracy(name="sex_accuracy"), _labels),
        "mass": (keras.metrics.MeanAbsoluteError(name="mass_error"), _numbers),
        "isotopes": (keras.metrics.MeanAbsoluteError(name="isotopes_error"), _numbers),
    }
    return {
        metric.name: tfloss.metric(metric, pick(task))
        for task, (metric, pick) in every.items()
        if task in tasks
    }


def _labels(task: str) -> Callable[..., Any]:
    def pick(batch: Mapping[str, tf.Tensor], found: Mapping[str, tf.Tensor]) -> tuple[Any, ...]:
        known = batch[task] >= 0
        return tf.where(known, batch[task], 0), found[task], tf.cast(known, tf.float32)

    return pick


def _numbers(task: str) -> Callable[..., Any]:
    def pick(batch: Mapping[str, tf.Tensor], found: Mapping[str, tf.Tensor]) -> tuple[Any, ...]:
        known = ~tf.math.is_nan(batch[task])
        truth, guess = (tf.reshape(x, [-1, 1]) for x in (batch[task], found[task]))
        known = tf.reshape(known, [-1, 1])
        truth = tf.where(known, truth, 0.0)
        return truth, guess, tf.cast(known, tf.float32)[:, 0]

    return pick
