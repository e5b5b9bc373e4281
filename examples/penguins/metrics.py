"""How well each task is done, on the penguins whose label is known."""

from collections.abc import Collection

import keras
import tensorflow as tf

import tfloss


def metrics_of(tasks: Collection[str]) -> dict:
    """`{name: metric}`: accuracies, and mean absolute errors in g and per mille."""
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


def _labels(task):
    def pick(batch, found):
        known = batch[task] >= 0
        return tf.where(known, batch[task], 0), found[task], tf.cast(known, tf.float32)

    return pick


def _numbers(task):
    def pick(batch, found):
        known = ~tf.math.is_nan(batch[task])
        truth, guess = (tf.reshape(x, [-1, 1]) for x in (batch[task], found[task]))
        known = tf.reshape(known, [-1, 1])
        truth = tf.where(known, truth, 0.0)
        return truth, guess, tf.cast(known, tf.float32)[:, 0]

    return pick
