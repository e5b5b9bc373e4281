"""Metrics are checked, bound to their arguments, and their results are flattened."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfloss.evaluation.metrics import (
    HostMetric,
    check_metrics,
    describe_nest,
    flat_results,
    metric,
    own_metrics,
    takes_predictions,
)
from tfloss.hooks import Evaluate


def test_a_metric_with_replicated_variables_is_copied_outside_of_the_scope(replicas):
    plain = metric(keras.metrics.Mean(), lambda batch, predictions: predictions)
    with replicas(2).scope():
        replicated = metric(keras.metrics.Mean(), lambda batch, predictions: predictions)
    assert plain.outside_scope() is plain
    copy = replicated.outside_scope()
    copy.metric.update_state([1.0, 2.0])
    assert float(copy.metric.result()) == 1.5
    assert copy.metric is not replicated.metric and copy.arguments is replicated.arguments


@pytest.mark.promise(42)
def test_a_copy_outside_of_the_scope_has_all_arguments(replicas):
    with replicas(2).scope():
        cosine = metric(keras.metrics.CosineSimilarity(axis=0), lambda b, p: (b, p))
    # Columns 3 4 and 1 0 have the cosine 0.6; rows would have 1 and 0.
    found = cosine.outside_scope().metric([[3.0], [4.0]], [[1.0], [0.0]])
    assert float(found) == pytest.approx(0.6)


def test_only_keras_metrics_can_be_bound():
    with pytest.raises(TypeError, match="must be a keras.Metric, got float"):
        metric(1.0, lambda batch, predictions: predictions)


class _Count:
    def update(self, batch, predictions): ...

    def result(self):
        return 0


class _Reset(_Count):
    def reset(self): ...


class _OfBatch(_Reset):
    def update(self, batch): ...


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (keras.metrics.Mean(), "'acc' must be made by tfloss.metric.*Bind it"),
        (1, r"'acc' must be made.*got int\.$"),
        (_Reset, "got the class _Reset"),
        (_Count(), r"'acc' \(_Count\) has neither reset\(\) nor reset_state\(\)"),
    ],
)
def test_what_is_no_metric_is_rejected(value, message):
    with pytest.raises(TypeError, match=message):
        check_metrics({"acc": value})
    with pytest.raises(TypeError, match=message):  # before training
        Evaluate(tf.data.Dataset.range(1).batch(1), {"acc": value})


def test_one_metric_under_two_names_is_rejected():
    mean, host = keras.metrics.Mean(), _Reset()
    bound = [metric(mean, lambda b, p: p), metric(mean, lambda b, p: -p)]
    for pair in [bound, [host, host]]:
        with pytest.raises(ValueError, match="'a' and 'b' are the same .* would be mixed"):
            check_metrics(dict(zip("ab", pair, strict=True)))


def test_an_object_with_update_result_and_reset_is_a_metric():
    assert isinstance(_Reset(), HostMetric)
    check_metrics({"count": _Reset()})
    assert takes_predictions(_Reset()) and not takes_predictions(_OfBatch())


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


def test_a_model_may_own_its_metrics():
    bound = metric(keras.metrics.Mean(), lambda batch, p: p)

    class Owner(keras.Model):
        def evaluation_metrics(self):
            return {"mean": bound}

    assert own_metrics(Owner()) == {"mean": bound}
    assert own_metrics(keras.Sequential()) == {}
    assert flat_results("", {"a": 1.0, "b": {"c": 2.0}}) == {"a": 1.0, "b/c": 2.0}
