"""Ops of a traced function are copied into another one, in order, with what they captured."""

import gc

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

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
def test_a_copy_captures_the_same_variables_and_keeps_the_order():
    total, table = tf.Variable(1.0), tf.constant(np.arange(1000.0, dtype=np.float32))

    def add(x):
        total.assign_add(x)
        total.assign(total * 2.0)
        return total.read_value() + table[3]

    original = traced(add, tf.TensorSpec([], tf.float32))
    captured = _upstream.captured_values(original.graph)
    assert {one.dtype for one in captured.values()} == {tf.resource, tf.float32}
    assert [one.ref() for one in _upstream.used_variables(original.graph)] == [total.ref()]
    (x,) = [one for one in original.inputs if one.name not in captured]
    result = original.outputs[0].name

    def loop(times):
        def body(i, last):
            given = {x.name: tf.cast(i, tf.float32), **captured}
            ops, always = part(original.graph, ()), original.graph.control_outputs
            (last,) = _upstream.call_ops(ops, given, [result], [op.name for op in always])
            last.set_shape([])
            return i + 1, last

        return tf.while_loop(lambda i, _: i < times, body, [0, 0.0])[1]

    for jit in (False, True):
        total.assign(1.0)
        last = tf.function(loop, jit_compile=jit, autograph=False)(tf.constant(3))
        assert total.numpy() == ((1.0 * 2 + 1) * 2 + 2) * 2 and last.numpy() == 16.0 + 3.0


@pytest.mark.upstream
def test_ops_are_copied_beside_control_dependencies():
    original = traced(lambda x: tf.sin(x) + 1.0, tf.TensorSpec([], tf.float32))
    (x,), (result,) = original.inputs, original.outputs

    def copied(value):
        with tf.control_dependencies([tf.cos(value)]):
            given = {x.name: tf.identity(value)}
            return _upstream.call_ops(part(original.graph, ()), given, [result.name])[0]

    assert tf.function(copied, autograph=False)(tf.constant(0.0)).numpy() == 1.0


@pytest.mark.upstream
def test_nested_functions_are_changed_under_another_name():
    inner = tf.function(lambda x: tf.sin(x), autograph=False)
    outer = tf.function(lambda x: inner(x) + tf.cond(x > 0.0, lambda: inner(x), lambda: x))
    original = traced(lambda x: outer(x), tf.TensorSpec([], tf.float32))
    ops = part(original.graph, ())
    functions = len(ops.library.function)

    def change(node):
        if node.op == "Sin":
            node.op = "Cos"
        return node.op == "Cos"

    rename = _upstream.change_functions(ops.library, change, "_changed")
    rename(ops.node)
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


@pytest.mark.parametrize("jit", [False, True])
def test_variables_are_read_at_this_point(jit):
    ones = [tf.Variable([[1.0, 2.0]]), tf.Variable(3.0), tf.Variable([4.0])]
    count = tf.Variable(7, dtype=tf.int64)

    def read():
        before = _upstream.read_variables(ones, joined=True)[0]
        for one in ones:
            one.assign_add(tf.ones_like(one))
        after = _upstream.read_variables(ones)
        return before, after, _upstream.read_variables([count], joined=True)[0]

    before, after, number = tf.function(read, jit_compile=jit, autograph=False)()
    assert before.numpy().tolist() == [1.0, 2.0, 3.0, 4.0] and number.numpy().tolist() == [7]
    assert [one.numpy().tolist() for one in after] == [[[2.0, 3.0]], 4.0, [5.0]]


@pytest.mark.upstream
def test_a_called_function_lives_as_long_as_its_caller():
    original = traced(lambda x: tf.sin(x) + 1.0, tf.TensorSpec([], tf.float32))
    (x,), (result,) = original.inputs, original.outputs

    def copied(value):
        given = {x.name: value}
        return _upstream.call_ops(part(original.graph, ()), given, [result.name])[0]

    program = traced(copied, tf.TensorSpec([], tf.float32))
    ops = [op for op in program.graph.get_operations() if op.type == "StatefulPartitionedCall"]
    name = ops[0].get_attr("f").name
    assert len(ops) == 1 and context.context().has_function(name)
    assert program(tf.constant(0.0)).numpy() == 1.0
    del program, ops
    gc.collect()
    assert not context.context().has_function(name)


def test_an_op_is_no_function():
    assert _upstream.is_op("MatMul") and not _upstream.is_op("__inference_step_12")
