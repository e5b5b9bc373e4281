"""Keras still routes losses of a compiled model as `tfloss._upstream.keras_compile` expects."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfloss import _upstream

pytestmark = pytest.mark.upstream


def _compiled(**options):
    x = keras.Input([2])
    model = keras.Model(x, [keras.layers.Dense(1, name=name)(x) for name in "ab"])
    model.compile(loss={"a": "mse", "b": lambda y, p: p}, loss_weights=[2.0, 0.5], **options)
    return model


def test_each_loss_finds_its_labels_and_no_variable_is_made():
    model = _compiled()
    given = _upstream.compiled_losses(model)
    y, p = [tf.zeros([3, 1]), tf.ones([3, 1])], [tf.ones([3, 1]) * 2, tf.ones([3, 1]) * 3]
    mean = keras.metrics.Mean
    a, b = _upstream.output_losses(*given, y, p, {"a": tf.ones([3]), "b": tf.zeros([3])}["a"])
    assert (a.name, a.weight, b.name, b.weight) == ("a", 2.0, "b", 0.5)
    assert a.y_true is y[0] and b.y_pred is p[1] and a.sample_weight is b.sample_weight
    assert _upstream.wraps_function(a.loss) and _upstream.wraps_function(b.loss)
    assert not _upstream.wraps_function(keras.losses.MeanSquaredError())
    assert keras.src.metrics.Mean is mean and not model._compile_loss.built
    assert _upstream.compiled_losses(keras.Sequential([keras.layers.Dense(1)])) is None


def test_compute_loss_calls_the_compiled_loss():
    model = _compiled()
    model(tf.ones([1, 2]))
    with _upstream.compiled_loss_replaced(model, lambda y, p, weight: tf.constant(5.0)):
        assert float(_upstream.loss_of_batch(model, None, None, None, None, True)) == 5.0
    assert isinstance(model._compile_loss, keras.losses.Loss)


def test_added_losses_are_seen():
    class Adds(keras.layers.Layer):
        def call(self, x, add=False):
            if add:
                self.add_loss(keras.ops.sum(x))
            return x

    model = keras.Sequential([Adds()])
    model(tf.ones([1]))
    assert not _upstream.adds_losses(model)
    model.layers[0](tf.ones([1]), add=True)
    assert _upstream.adds_losses(model)


def test_metrics_are_copied_with_their_names():
    metric = keras.metrics.MeanAbsoluteError(name="error")
    model = _compiled(metrics={"a": metric}, weighted_metrics={"b": ["mae"]})
    found = _upstream.copied_metrics(model)
    ones = tf.ones([3, 1])
    found.update_state([ones, ones], [ones * 2, ones], np.ones([3]))
    assert {k: float(v) for k, v in found.result().items()} == {"a_error": 1.0, "b_mae": 0.0}
    assert float(metric.result()) == 0.0 and metric not in found.metrics
    assert _upstream.copied_metrics(_compiled()) is None


def test_the_names_and_directions_of_compiled_metrics_are_known_before_they_are_built():
    def own(y_true, y_pred):
        return y_pred

    accuracy, error = keras.metrics.BinaryAccuracy(name="right"), keras.metrics.MeanSquaredError()
    model = _compiled(
        metrics={"a": ["accuracy", "mae", own], "b": error},
        weighted_metrics=[["mae"], [accuracy, "mse"]],
    )
    modes = _upstream.compiled_metric_modes(model)
    found = _upstream.copied_metrics(model)
    ones = tf.ones([3, 1])
    found.update_state([ones, ones], [ones, ones], np.ones([3]))
    names = set(found.result())
    assert names <= set(modes)
    assert names >= {"a_accuracy", "a_mae", "a_own", "b_mean_squared_error", "b_right"}
    assert {name for name in names if modes[name] == "max"} == {"a_accuracy", "b_right"}
    assert {name for name in names if modes[name] is None} == {"a_own"}
    assert _upstream.compiled_metric_modes(_compiled()) == {}
    assert _upstream.compiled_output_names(model) == ["a", "b"]


def test_own_methods_and_the_train_step_of_keras_are_found():
    class Own(keras.Model):
        def train_step(self, data):
            return super().train_step(data + 1)

    assert _upstream.own_method(Own(), "train_step") is Own.train_step
    assert _upstream.own_method(keras.Sequential(), "train_step") is None
    with _upstream.base_train_step_replaced(lambda model, data: {"data": data}):
        assert Own().train_step(1) == {"data": 2}
