"""All ops of a traced function are walked, in nested functions too."""

import collections

import pytest
import tensorflow as tf

from tfloss.inspect.traced_ops import operations


def _graph(function):
    return tf.function(function, autograph=False).get_concrete_function(tf.constant(1.0)).graph


@pytest.mark.parametrize(
    "function",
    [
        lambda x: tf.sin(x),
        lambda x: tf.cond(x > 0, lambda: tf.sin(x), lambda: x),
        lambda x: tf.while_loop(lambda y: y < 3, lambda y: [tf.sin(y)], [x])[0],
        lambda x: tf.function(tf.sin)(x),
        lambda x: tf.function(tf.sin, jit_compile=True)(x),
        lambda x: tf.function(lambda y: tf.cond(y > 0, lambda: tf.sin(y), lambda: y))(x),
    ],
    ids=["plain", "cond", "while", "function", "jit", "nested"],
)
def test_an_op_is_found_once_wherever_it_is(function):
    types = collections.Counter(op.type for op, _ in operations(_graph(function)))
    assert types["Sin"] == 1


def test_variables_are_known_by_their_handles_in_nested_functions():
    outer, inner = tf.Variable(1.0), tf.Variable(2.0)
    nested = tf.function(lambda: tf.cond(outer > 0, lambda: inner.assign_add(1.0), lambda: inner))
    graph = _graph(lambda x: x + nested())
    (assign,) = [(op, known) for op, known in operations(graph) if op.type == "AssignAddVariableOp"]
    op, known = assign
    assert known[op.inputs[0].name] == id(inner.handle)


def test_a_function_called_with_different_variables_is_walked_for_each():
    add = tf.function(lambda variable: variable.assign_add(1.0))
    variables = [tf.Variable(1.0), tf.Variable(2.0)]
    graph = _graph(lambda x: [add(variable) for variable in variables])
    handles = {
        known[op.inputs[0].name]
        for op, known in operations(graph)
        if op.type == "AssignAddVariableOp"
    }
    assert handles == {id(variable.handle) for variable in variables}
