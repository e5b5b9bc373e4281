"""Which shape is stacked, and how many steps fit in a block."""

import json
import re

import pytest
import tensorflow as tf

from tfloss.data.block_size import (
    MAX_BLOCK_BYTES,
    MAX_BLOCK_STEPS,
    BlockSize,
    reason_not_to_stack,
)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"x": tf.TensorSpec([None, 3])}, None),
        ((tf.TensorSpec([8, 3]), tf.TensorSpec([], tf.int64)), None),
        ({"x": tf.TensorSpec([None, None, 3])}, r"shape \(None, None, 3\)"),
        ({"x": tf.TensorSpec([8], tf.string)}, "strings"),
        ({"x": tf.RaggedTensorSpec([8, None])}, "RaggedTensor"),
    ],
)
def test_what_can_not_be_stacked(spec, reason):
    found = reason_not_to_stack(spec)
    if reason is None:
        assert found is None
    else:
        assert re.search(reason, found)


def _repeated(size, batch):
    """Whether the shape of a single batch should be stacked, now that it comes."""
    size.count_single(batch)
    return size.repeated is not None


def _adopted(batch, batches_per_step=1, alignment=1):
    size = BlockSize(batches_per_step, alignment)
    size.adopt(batch)
    return size


def test_before_the_first_batch_nothing_is_known():
    size = BlockSize(1, 1)
    assert size.template is None and size.steps == size.batches == 0


@pytest.mark.parametrize(
    ("megabytes", "batches_per_step", "steps"),
    [
        (0.25, 1, 96),
        (4, 1, 6),
        (4, 3, 2),
        (4, 7, 1),
    ],
)
def test_a_block_is_bounded_in_bytes(megabytes, batches_per_step, steps):
    batch = tf.zeros([int(megabytes * 2**18)])
    size = _adopted(batch, batches_per_step)
    assert size.steps == steps and size.batches == steps * batches_per_step
    assert steps == 1 or size.batches * batch.dtype.size * len(batch) <= MAX_BLOCK_BYTES


@pytest.mark.parametrize(
    ("alignment", "steps", "aligned"),
    [(1, MAX_BLOCK_STEPS, True), (30, 390, True), (400, 400, True), (500, 400, False)],
)
def test_a_block_holds_a_multiple_of_the_alignment_if_it_fits(alignment, steps, aligned):
    size = _adopted(tf.zeros([2]), alignment=alignment)
    assert (size.steps, size.aligned) == (steps, aligned)


def test_a_shape_that_repeats_is_adopted_and_the_next_one_later():
    size = _adopted(tf.zeros([3]))

    def needed(batch):
        count = 1
        while not _repeated(size, batch):
            count += 1
        size.adopt(batch)
        return count

    assert needed(tf.zeros([2])) == 3
    assert needed(tf.zeros([3])) == 6
    assert needed(tf.zeros([2])) == 12


def test_the_stacked_shape_need_not_change():
    size = _adopted(tf.zeros([3]))
    assert not any(_repeated(size, tf.zeros([3])) for _ in range(10))


def test_only_consecutive_batches_count():
    size = _adopted(tf.zeros([3]))
    for _ in range(5):
        assert not _repeated(size, tf.zeros([2]))
        assert not _repeated(size, tf.zeros([2]))
        size.count_block()
        assert not _repeated(size, tf.zeros([2]))
        assert not _repeated(size, tf.zeros([1]))


def test_a_resumed_run_stacks_the_same_batches():
    """The saved state counts the two batches of another shape; the third one decides."""
    spec = {"x": tf.TensorSpec([None, 2]), "y": tf.TensorSpec([None], tf.int64)}

    def batch(count):
        return {"x": tf.zeros([count, 2]), "y": tf.zeros([count], tf.int64)}

    size = _adopted(batch(4))
    assert not any(_repeated(size, batch(3)) for _ in range(2))
    again = BlockSize(1, 1)
    again.restore(json.loads(json.dumps(size.state())), spec)
    assert again.shapes == [[4, 2], [4]] and again.steps == size.steps
    assert _repeated(again, batch(3))
    assert BlockSize(1, 1).state() is None


def test_a_state_of_other_batches_is_ignored():
    size = BlockSize(1, 1)
    size.restore(_adopted(tf.zeros([3])).state(), {"x": tf.TensorSpec([1]), "y": tf.TensorSpec([])})
    assert size.template is None


def test_the_next_block_is_expected_before_the_first_batch():
    size = BlockSize(2, alignment=10)
    spec = {"x": tf.TensorSpec([None, 3], tf.int32)}
    assert size.expected(spec, None) is None
    expected = size.expected(spec, 4)
    block = expected.block()
    assert expected.batches == 800
    assert block["x"].shape == [800, 4, 3] and block["x"].dtype == tf.int32
    assert size.template is None  # the first batch decides
    size.adopt({"x": tf.zeros([5, 3], tf.int32)})
    assert size.expected(spec, 4) is size
    assert size.block()["x"].shape == [800, 5, 3]
