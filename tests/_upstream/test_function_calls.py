"""Ops of a traced function are called by another one, in order, with what they captured."""

import gc

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from tests._upstream.test_graph_defs import part, traced
from tfloss import _upstream


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


@pytest.mark.upstream
@pytest.mark.parametrize("jit", [False, True])
def test_only_the_outermost_function_captures_what_is_lifted(jit):
    """Variables that are read before a loop, changed in it, and read after it."""
    total, count = tf.Variable([1.0, 2.0]), tf.Variable(3, dtype=tf.int64)
    plain = tf.Variable(5.0)  # captured as usual, in the loop

    def step(x):
        total.assign(total * x)
        count.assign_add(2)
        return tf.reduce_sum(total)

    original = traced(step, tf.TensorSpec([], tf.float32))
    captured = _upstream.captured_values(original.graph)
    (x,) = [one for one in original.inputs if one.name not in captured]
    always = [op.name for op in original.graph.control_outputs]

    def loop(batch, steps):
        before = _upstream.read_variables([total], joined=True)[0]

        def body(i, last):
            plain.assign_add(1.0)
            ops, given = part(original.graph, ()), {x.name: batch["x"] + plain, **captured}
            (last,) = _upstream.call_ops(ops, given, [original.outputs[0].name], always)
            last.set_shape([])
            return i + 1, last

        _, last = tf.while_loop(lambda i, _: i < steps, body, [0, 0.0])
        after = _upstream.read_variables([total])[0]
        return {"before": before, "after": after}, last

    def outer(batch, steps):
        return _upstream.call_lifted(loop, batch, steps)

    program = tf.function(outer, jit_compile=jit, autograph=False).get_concrete_function(
        {"x": tf.TensorSpec([], tf.float32)}, tf.TensorSpec([], tf.int32)
    )
    assert len(program.captured_inputs) == 3 and plain.ref() in {v.ref() for v in program.variables}
    calls = [op for op in program.graph.get_operations() if len(op.inputs) > 1]
    assert [op.type for op in calls] == ["StatefulPartitionedCall"]
    for _ in range(2):
        total.assign([1.0, 2.0])
        plain.assign(5.0)
        values, last = program({"x": tf.constant(-4.0)}, tf.constant(3))
        assert values["before"].numpy().tolist() == [1.0, 2.0]
        assert values["after"].numpy().tolist() == [24.0, 48.0] and last.numpy() == 72.0
    assert plain.numpy() == 8.0 and count.numpy() == 3 + 2 * 6
    assert values["after"].shape == [2]
