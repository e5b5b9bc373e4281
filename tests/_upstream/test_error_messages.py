"""Errors of TensorFlow and Keras are still recognised."""

import keras
import pytest
import tensorflow as tf

from tfloss import _upstream

pytestmark = pytest.mark.upstream


def test_find_cause_returns_the_error_that_was_raised():
    class Model(keras.Model):
        def call(self, x):
            raise KeyError("labels")

    with pytest.raises(Exception) as e:
        tf.function(lambda x: Model()(x))(tf.zeros([1]))
    found = _upstream.find_cause(e.value, KeyError)
    assert type(found) is KeyError and found.args == ("labels",)


def test_the_inputs_of_an_op_that_gave_nan_are_in_the_traceback():
    tf.debugging.enable_check_numerics()
    tf.debugging.disable_traceback_filtering()
    try:
        with pytest.raises(tf.errors.InvalidArgumentError) as e:
            tf.constant([1.0, -2.0]) / tf.constant([4.0, 0.0])
    finally:
        tf.debugging.enable_traceback_filtering()
        tf.debugging.disable_check_numerics()
    lines, inputs = _upstream.failed_numerics_check(e.value)
    assert [one.numpy().tolist() for one in inputs] == [[1.0, -2.0], [4.0, 0.0]]
    assert "RealDiv" in lines[0] or "truediv" in lines[0], lines
    assert any("dtype:" in line for line in lines) and any("shape:" in line for line in lines)
    assert _upstream.failed_numerics_check(KeyError()) == ([], [])


def test_synchronising_replicas_in_a_nested_function_names_merge_call(replicas):
    strategy = replicas(2)

    def replica():
        context = tf.distribute.get_replica_context()
        nested = tf.function(lambda: context.all_reduce("sum", tf.constant(1.0)))
        return nested()

    with pytest.raises(RuntimeError) as e:
        tf.function(lambda: strategy.run(replica))()
    assert _upstream.caused_by_merge_call(e.value)
    assert not _upstream.caused_by_merge_call(RuntimeError("another error"))


def test_concatenating_unequal_shapes_names_the_op():
    concat = tf.function(lambda x, y: tf.concat([x, y], 0), reduce_retracing=True)
    spec = tf.TensorSpec([None, None])
    with pytest.raises(tf.errors.InvalidArgumentError) as e:
        concat.get_concrete_function(spec, spec)(tf.zeros([1, 2]), tf.zeros([1, 3]))
    assert _upstream.caused_by_unequal_shapes_in_concat(e.value)
    other = tf.errors.InvalidArgumentError(None, None, "another error")
    assert not _upstream.caused_by_unequal_shapes_in_concat(other)
