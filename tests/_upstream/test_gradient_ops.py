"""The forward op and the user's line of a gradient that failed."""

import pytest
import tensorflow as tf

from tfloss._upstream import ForwardOps
from tfloss.inspect.source_lines import is_library


def _failed(function, value):
    """Returns what is found of the first op with a gradient that is not finite."""
    variable, ops = tf.Variable(value), ForwardOps()
    with tf.GradientTape() as tape, ops.recorded(is_library):
        result = function(variable)
    tf.debugging.disable_traceback_filtering()
    tf.debugging.enable_check_numerics()
    try:
        with pytest.raises(tf.errors.InvalidArgumentError) as caught:
            tape.gradient(result, variable)
    finally:
        tf.debugging.disable_check_numerics()
        tf.debugging.enable_traceback_filtering()
    return ops.failed_gradient(caught.value)


def _root(variable):
    return tf.reduce_sum(tf.sqrt(variable * 2.0))


def _log(variable):
    return tf.reduce_sum(tf.where(variable > 0.0, tf.math.log(variable), 0.0))


@pytest.mark.parametrize(("function", "op"), [(_root, "Sqrt"), (_log, "Log")])
def test_the_op_and_its_line_are_found(function, op):
    found, call = _failed(function, [0.0, 1.0])
    assert found == op
    assert call == (op, __file__, function.__code__.co_firstlineno + 1)


def test_other_errors_are_not_of_a_gradient():
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        tf.reshape([1.0], [2])
    assert ForwardOps().failed_gradient(caught.value) is None
