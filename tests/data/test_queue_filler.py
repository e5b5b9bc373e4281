"""The queue is filled in order; an error that was met ahead comes in its place."""

import numpy as np
import pytest
import tensorflow as tf

from tfloss.data.batch_queue import BatchQueue
from tfloss.data.block_size import BlockSize
from tfloss.data.queue_filler import QueueFiller


@pytest.fixture(autouse=True)
def _no_time_limit(monkeypatch):
    """On a busy machine a block would be cut short by the clock."""
    monkeypatch.setattr("tfloss.data.pull_block.MAX_SECONDS", float("inf"))


def _filler(dataset, batches_per_step=1, **options):
    queue, size = BatchQueue(), BlockSize(batches_per_step, options.pop("alignment", 1))
    defaults = {
        "endless": False,
        "current_step": lambda: 0,
        "on_first_batch": lambda: None,
    }
    iterator = iter(dataset)
    return QueueFiller(iterator, queue, size, batches_per_step, **defaults | options), queue


def _numbers(queue):
    return [int(batch) for batch in queue.take(len(queue))]


def _corrupt(bad, first=0):
    def read(i):
        text = tf.where(tf.equal(i, bad), "corrupt", tf.strings.as_string(i))
        return tf.strings.to_number(text, tf.int64)

    return tf.data.Dataset.range(first, 1000).map(read)


def test_single_batches_and_then_blocks():
    filler, queue = _filler(tf.data.Dataset.range(1000))
    filler.add_batch()
    filler.add_batch()
    assert not filler.reads_ahead and len(queue) == 2
    assert filler.add_block() and filler.reads_ahead
    assert len(queue) == 400  # a block ends at a multiple of 400 steps
    while True:
        try:
            filler.add_block()
        except StopIteration:
            break
    assert _numbers(queue) == list(range(1000))


def test_a_block_begins_with_a_step():
    filler, queue = _filler(tf.data.Dataset.range(1000), batches_per_step=3)
    filler.add_batch()
    filler.add_block()
    singles = 0
    while queue.starts_with_single():
        queue.take(1)
        singles += 1
    assert singles == 3


@pytest.mark.parametrize(("expected", "used"), [(2, True), (1, False)])
def test_what_was_prepared_is_used_if_the_batches_are_as_expected(expected, used):
    filler, queue = _filler(tf.data.Dataset.range(2000).batch(2), current_step=lambda: 390)
    size = BlockSize(1, 1)
    size.adopt(tf.zeros([expected], tf.int64))
    filler.prepare(size)
    prepared = filler._prepared
    filler.add_batch()  # nothing was read before
    filler.add_block()
    assert (filler._ahead is prepared) == used
    assert len(queue) == 10  # a block ends at step 400
    filler.add_block()
    assert np.ravel(queue.take(len(queue))).tolist() == list(range(820))


def test_the_step_decides_where_a_block_ends():
    filler, queue = _filler(tf.data.Dataset.range(1000), current_step=lambda: 350)
    filler.add_batch()
    filler.add_block()
    assert len(queue) == 50


def test_the_first_batch_is_reported_once():
    calls = []
    filler, queue = _filler(
        tf.data.Dataset.range(9), on_first_batch=lambda: calls.append(len(queue))
    )
    filler.add_batch()
    filler.add_batch()
    assert calls == [1]


def test_paused_it_adds_what_was_read_and_then_nothing():
    filler, queue = _filler(tf.data.Dataset.range(100_000))
    filler.add_batch()
    filler.add_block()
    filler.pause()
    before = len(queue)
    assert not filler.add_block() and len(queue) == before
    filler.resume()
    while len(queue) == before:
        filler.add_block()
    assert _numbers(queue) == list(range(before + 400))


def test_an_error_that_was_met_ahead_comes_after_the_batches_before_it():
    filler, queue = _filler(_corrupt(5))
    filler.add_batch()
    assert filler.add_block() and filler.error_pending
    assert not filler.reads_ahead and not filler.failed
    with pytest.raises(tf.errors.InvalidArgumentError, match="corrupt"):
        filler.add_block()
    assert filler.failed and not filler.error_pending
    assert _numbers(queue) == [0, 1, 2, 3, 4]
    filler.add_block()
    assert _numbers(queue)[:3] == [6, 7, 8]


def test_a_postponed_error_comes_with_the_next_batch():
    filler, _ = _filler(tf.data.Dataset.range(9))
    filler.postpone(ValueError("later"))
    with pytest.raises(ValueError, match="later"):
        filler.add_batch()
    assert filler.failed
    filler.add_batch()
    assert not filler.failed


def test_the_end_is_no_failure_and_waiting_is_measured():
    times = iter([1.0, 1.5, 2.0, 4.0])
    filler, _ = _filler(tf.data.Dataset.range(1), clock=lambda: next(times))
    filler.add_batch()
    with pytest.raises(StopIteration):
        filler.add_batch()
    assert not filler.failed and filler.waited == 2.5
