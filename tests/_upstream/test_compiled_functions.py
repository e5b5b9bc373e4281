"""XLA compiles a function on copies of its variables, and keeps the program."""

import time

import pytest
import tensorflow as tf

from tfloss import _upstream


@pytest.mark.upstream
def test_a_program_is_compiled_on_copies_and_the_variables_keep_their_values():
    weight, count = tf.Variable([1.0, 2.0]), tf.Variable(0, dtype=tf.int64)
    table = tf.constant([3.0, 4.0])

    def loop(x, steps):
        def body(i, total):
            for _ in range(150):  # takes XLA a while
                total = tf.tanh(total + tf.reduce_mean(x * table) * weight)
            weight.assign_add(total)
            count.assign_add(1)
            return i + 1, total

        return tf.while_loop(lambda i, _: i < steps, body, [0, x])[1]

    program = tf.function(loop, jit_compile=True, autograph=False).get_concrete_function(
        tf.TensorSpec([2]), tf.TensorSpec([], tf.int32)
    )
    assert _upstream.can_compile_on_copies(program, [])
    began = time.process_time()
    _upstream.compile_on_copies(program, [], tf.zeros([2]), tf.constant(0))
    compiling = time.process_time() - began
    assert weight.numpy().tolist() == [1.0, 2.0] and count.numpy() == 0
    began = time.process_time()
    program(tf.ones([2]), tf.constant(3))
    assert time.process_time() - began < compiling / 4
    assert count.numpy() == 3 and weight.numpy()[0] != 1.0


def test_a_variable_that_only_raw_ops_use_is_given():
    weight = tf.Variable([1.0])

    def add(x):
        tf.raw_ops.AssignAddVariableOp(resource=weight.handle, value=x)

    program = tf.function(add, jit_compile=True, autograph=False).get_concrete_function(
        tf.TensorSpec([1])
    )
    assert not _upstream.can_compile_on_copies(program, [])
    assert _upstream.can_compile_on_copies(program, [weight])
    _upstream.compile_on_copies(program, [weight], tf.ones([1]))
    assert weight.numpy().tolist() == [1.0]


def test_a_mirrored_variable_of_one_replica_is_given():
    """In the scope of the strategy, it has no handle."""
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        weight = tf.Variable([1.0])

    def add(x):
        strategy.run(lambda: weight.assign_add(x))

    program = tf.function(add, jit_compile=True, autograph=False).get_concrete_function(
        tf.TensorSpec([1])
    )
    with strategy.scope():
        assert _upstream.can_compile_on_copies(program, [weight])
    _upstream.compile_on_copies(program, [weight], tf.ones([1]))
    assert weight.numpy().tolist() == [1.0]


def test_a_function_that_captures_another_resource_is_not():
    table = tf.lookup.experimental.DenseHashTable(tf.int64, tf.int64, -1, -1, -2)
    function = tf.function(lambda x: table.lookup(x), autograph=False)
    program = function.get_concrete_function(tf.TensorSpec([2], tf.int64))
    assert not _upstream.can_compile_on_copies(program, [])
