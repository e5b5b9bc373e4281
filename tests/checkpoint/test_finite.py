"""Variables that are not finite are found by name."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfloss.checkpoint.finite import describe_nonfinite, nonfinite_arrays, nonfinite_variables


@pytest.mark.parametrize("count", [1, 2])
def test_weights_and_statistics_of_any_replica_are_found(count, replicas):
    with (strategy := replicas(count)).scope():
        net = keras.Sequential([keras.Input([2]), keras.layers.Dense(2, name="dense")])
        net.add(keras.layers.BatchNormalization(name="norm"))
    assert nonfinite_variables(net) == []
    net.layers[0].kernel.assign([[1.0, np.inf], [0.0, 0.0]])
    variance = net.layers[1].moving_variance.value
    strategy.experimental_local_results(variance)[-1].assign([np.nan, 1.0])
    found = nonfinite_variables(net)
    ends = [name.rpartition("/")[2] for name in found]
    assert ends == ["kernel", "moving_variance"]


def test_integers_and_metrics_are_left_out():
    mean = keras.metrics.Mean(name="mean")
    mean.update_state(np.nan)
    variables = {"count": tf.Variable(3), "metric": mean.variables[0], "w": tf.Variable(np.nan)}
    # A metric outside of a strategy is an ordinary variable, and counts by its aggregation.
    assert "w" in nonfinite_variables(variables) and "count" not in nonfinite_variables(variables)
    assert "metric" not in nonfinite_variables(variables)


def test_arrays_are_found_in_half_precision_too():
    bad = np.array([1.0, np.inf])
    half = tf.constant([np.nan], tf.bfloat16).numpy()
    values = {"a": bad, "b": np.array([1]), "c": half, "d": np.array([1.0], np.float16)}
    assert nonfinite_arrays(values) == ["a", "c"]


def test_the_description_lists_the_first_names():
    text = describe_nonfinite([f"v{i}" for i in range(20)])
    assert text.startswith("NaN or infinite values in 'v0', 'v1', ") and "and 12 more." in text
