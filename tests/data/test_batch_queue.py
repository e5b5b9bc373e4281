"""Batches leave the queue in the order in which they came, one by one or as steps of a block."""

import numpy as np
import tensorflow as tf

from tfloss.data.batch_queue import BatchQueue, StepInputs, batch_at, batch_shapes, stack_batches


def _queue():
    """Batch 0, then batches 1 to 5 in a block, then batch 6."""
    queue = BatchQueue()
    queue.append(tf.constant([0]))
    queue.append_block(tf.range(1, 8)[:, tf.newaxis], 5)  # with room for two more
    queue.append(tf.constant([6]))
    return queue


def _numbers(batches):
    return [int(batch[0]) for batch in batches]


def test_batches_leave_in_order():
    queue = _queue()
    assert len(queue) == 7
    assert _numbers(queue.take(3)) == [0, 1, 2]
    assert len(queue) == 4
    assert _numbers(queue.take(4)) == [3, 4, 5, 6]
    assert len(queue) == 0


def test_a_block_gives_complete_steps_and_then_single_batches():
    queue = _queue()
    assert queue.starts_with_single()
    queue.take(1)
    assert not queue.starts_with_single()
    inputs = queue.take_steps(10, batches_per_step=2)
    assert (inputs.start, inputs.steps, inputs.batches) == (0, 2, ())
    inputs = queue.take_steps(10, batches_per_step=2)  # one batch of the block, one behind it
    assert inputs.block is None and inputs.steps == 0
    assert _numbers(inputs.batches) == [5, 6]


def test_steps_that_were_not_trained_on_come_again():
    queue = _queue()
    queue.take(1)
    inputs = queue.take_steps(2, batches_per_step=2)
    queue.put_back(inputs, 1, batches_per_step=2)
    assert _numbers(queue.take(4)) == [3, 4, 5, 6]


def test_a_block_that_was_trained_on_does_not_come_again():
    queue = _queue()
    queue.take(1)
    queue.put_back(queue.take_steps(2, batches_per_step=1), 2, batches_per_step=1)
    assert _numbers(queue.take(4)) == [3, 4, 5, 6]


def test_the_batches_of_one_step_come_again():
    queue = _queue()
    queue.put_back(StepInputs(batches=queue.take(2)), 0, batches_per_step=2)
    assert _numbers(queue.take(7)) == list(range(7))


def test_single_batches_of_one_shape_are_counted_at_the_front():
    queue = BatchQueue()
    for size in (2, 2, 1, 2):
        queue.append({"x": tf.zeros([size])})
    shapes = batch_shapes({"x": tf.zeros([2])})
    assert queue.count_singles(shapes, most=5) == 2
    assert queue.count_singles(shapes, most=1) == 1
    queue.take(2)
    assert queue.count_singles(shapes, most=5) == 0
    assert _queue().count_singles(batch_shapes(tf.constant([0])), most=5) == 1  # then the block


def test_a_stack_is_padded_to_its_capacity():
    batches = [{"x": tf.constant([i, i + 1]), "y": tf.constant(float(i))} for i in range(3)]
    block = stack_batches(batches, capacity=5)
    assert block["x"].shape == (5, 2) and block["y"].shape == (5,)
    for i, batch in enumerate(batches):
        found = batch_at(block, i)
        assert found["x"].numpy().tolist() == batch["x"].numpy().tolist()
        assert found["y"].numpy() == batch["y"].numpy()
    np.testing.assert_array_equal(block["x"][3:], np.zeros([2, 2]))
    graph = tf.function(lambda: stack_batches(batches, 5)).get_concrete_function().graph
    kinds = [op.type for op in graph.get_operations() if op.type not in ("Const", "Identity")]
    assert kinds == ["Pack", "Pad"] * 2  # a tensor of zeros would take the memory of a block


def test_an_empty_queue():
    queue = _queue()
    queue.clear()
    assert len(queue) == 0
