"""The functions that ops of a traced function call are found, and changed."""

import numpy as np
import pytest
import tensorflow as tf

from tfloss import _upstream


def traced(function, *specs):
    return tf.function(function, autograph=False).get_concrete_function(*specs)


def part(graph, names):
    ops = graph.as_graph_def()
    kept = [node for node in ops.node if node.name in names or not names]
    kept = [node for node in kept if node.op != "Placeholder"]
    del ops.node[:]
    ops.node.extend(kept)
    return ops


@pytest.mark.upstream
def test_nested_functions_are_changed_under_another_name():
    inner = tf.function(lambda x: tf.sin(x), autograph=False)
    outer = tf.function(lambda x: inner(x) + tf.cond(x > 0.0, lambda: inner(x), lambda: x))
    original = traced(lambda x: outer(x), tf.TensorSpec([], tf.float32))
    ops = part(original.graph, ())
    functions = len(ops.library.function)

    for node in (node for one in ops.library.function for node in one.node_def):
        if node.op == "Sin":
            node.op = "Cos"
    _upstream.rename_functions(ops, "_changed")
    ops.library.function.add().signature.name = "unused"
    _upstream.drop_functions(ops)
    assert 2 <= len(ops.library.function) <= functions
    (x,) = original.inputs

    def copy(value):
        return _upstream.call_ops(ops, {x.name: value}, [original.outputs[0].name])[0]

    copied = tf.function(copy, autograph=False)
    assert copied(tf.constant(1.0)).numpy() == pytest.approx(2 * np.cos(1.0))
    assert original(tf.constant(1.0)).numpy() == pytest.approx(2 * np.sin(1.0))
    assert tf.function(copy, jit_compile=True)(tf.constant(-1.0)).numpy() == pytest.approx(
        np.cos(1.0) - 1.0
    )
