"""Metrics are checked, bound to their arguments, and their results are flattened."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfloss.evaluation.metrics import HostMetric, check_metric, describe_nest, flat_results, metric


@pytest.mark.parametrize(
    "arguments",
    [
        lambda batch, predictions: (batch, predictions),
        lambda batch, predictions: {"y_true": batch, "y_pred": predictions},
    ],
    ids=["positional", "by name"],
)
def test_a_bound_metric_passes_its_arguments(arguments):
    bound = metric(keras.metrics.MeanSquaredError(), arguments)
    bound(tf.constant([1.0]), tf.constant([3.0]))
    assert float(bound.metric.result()) == 4.0


def test_one_tensor_is_one_argument():
    bound = metric(keras.metrics.Mean(), lambda batch, predictions: predictions)
    bound(None, tf.constant([1.0, 2.0]))
    assert float(bound.metric.result()) == 1.5


def test_a_metric_with_replicated_variables_is_copied_outside_of_the_scope(replicas):
    plain = metric(keras.metrics.Mean(), lambda batch, predictions: predictions)
    with replicas(2).scope():
        replicated = metric(keras.metrics.Mean(), lambda batch, predictions: predictions)
    assert plain.outside_scope() is plain
    copy = replicated.outside_scope()
    assert copy.metric is not replicated.metric and copy.arguments is replicated.arguments


def test_only_keras_metrics_can_be_bound():
    with pytest.raises(TypeError, match="must be a keras.Metric, got float"):
        metric(1.0, lambda batch, predictions: predictions)


def test_an_unbound_keras_metric_is_rejected():
    with pytest.raises(TypeError, match="'acc' must be made by tfloss.metric.*Bind it"):
        check_metric("acc", keras.metrics.Mean())
    with pytest.raises(TypeError, match=r"'acc' must be made.*got int\.$"):
        check_metric("acc", 1)


def test_an_object_with_update_and_result_is_a_metric():
    class Count:
        def update(self, batch, predictions): ...

        def result(self):
            return 0

    assert isinstance(Count(), HostMetric)
    check_metric("count", Count())


def test_mappings_and_arrays_are_flattened_with_keys_and_indices():
    found = flat_results("map", {"box": {"AP": 0.5}, "sizes": np.array([[1, 2], [3, 4]])})
    assert found == {
        "map/box/AP": 0.5,
        "map/sizes/0/0": 1.0,
        "map/sizes/0/1": 2.0,
        "map/sizes/1/0": 3.0,
        "map/sizes/1/1": 4.0,
    }
    assert flat_results("loss", tf.constant(2.0)) == {"loss": 2.0}


def test_a_nest_is_described_by_keys_dtypes_and_shapes():
    pair = collections.namedtuple("Pair", "a b")
    nest = {"p": pair(tf.zeros([2, 3]), [tf.constant(1)]), "r": (tf.ragged.constant([[1], []]), 3)}
    assert describe_nest(nest) == (
        "{'p': (a=float32 [2, 3], b=[int32 []]), 'r': (int32 [2, None], int)}"
    )
