"""Ops that make shapes depend on values are found with their lines."""

import tensorflow as tf

from tfloss.inspect.dynamic_shapes import dynamic_shapes


def _found(function, shape=(4, 2)):
    spec = tf.TensorSpec(shape, tf.float32)
    return dynamic_shapes(tf.function(function, autograph=False).get_concrete_function(spec).graph)


def test_the_first_op_is_named_and_what_follows_from_it_is_not():
    def masked(x):
        kept = tf.boolean_mask(x, x[:, 0] > 0)
        return tf.reduce_sum(tf.exp(kept) * 2.0)

    ((op, line),) = _found(masked)
    assert op == "Where" and __file__ in line and line.endswith("in masked")


def test_ops_in_nested_functions_are_found():
    inner = tf.function(lambda x: tf.reduce_sum(tf.unique(x[:, 0])[0]), autograph=False)
    assert [op for op, _ in _found(lambda x: inner(x) + 1.0)] == ["Unique"]


def test_static_shapes_and_unknown_arguments_are_not_found():
    assert _found(lambda x: tf.reshape(x, [2, -1]) + tf.reduce_sum(x)) == []
    assert _found(lambda x: tf.exp(x), (None, 2)) == []
