"""Batches that outlive an error, in order, and without a change of threads."""

import gc
import weakref

import numpy as np
import pytest
import tensorflow as tf

from tfloss.data.read_ahead import ReadAhead
from tfloss.data.staging_area import StagingArea


def _put_in_a_pipeline(area, numbers):
    """Puts batches `{"i": [n, n], "name": "n"}`, inside `tf.data` as `PullBlock` does."""

    @tf.autograph.experimental.do_not_convert
    def put(n):
        batch = {"i": tf.stack([n, n]), "name": tf.strings.as_string(n)}
        with tf.control_dependencies([area.put(batch)]):
            return tf.identity(n)

    return [int(n) for n in tf.data.Dataset.from_tensor_slices(numbers).map(put)]


@pytest.mark.parametrize("traced", [True, False])
def test_batches_come_out_in_order_and_zeros_fill_up(traced):
    template = {"i": tf.zeros([2], tf.int64), "name": tf.constant("")}
    area, other = StagingArea(template, 4), StagingArea(template, 4)
    _put_in_a_pipeline(area, np.array([5, 6]))
    assert area.count() == 2 and other.count() == 0
    take = tf.function(area.take) if traced else area.take
    block = take(tf.constant(2))
    assert block["i"].numpy().tolist() == [[5, 5], [6, 6], [0, 0], [0, 0]]
    assert block["name"].numpy().tolist() == [b"5", b"6", b"", b""]
    assert area.count() == 0
    _put_in_a_pipeline(area, np.array([7]))
    area.clear()
    assert area.count() == 0


def test_what_an_abandoned_block_has_left_is_freed_by_the_next_reader(monkeypatch):
    """Regression: freed by the garbage collector, in the middle of a trace, it hung."""
    monkeypatch.setattr("tfloss.data.pull_block.MAX_SECONDS", float("inf"))

    def read(i):
        text = tf.where(tf.equal(i, 7), "corrupt", tf.strings.as_string(i))
        return tf.strings.to_number(text, tf.int64)

    def reader():
        iterator = iter(tf.data.Dataset.range(20).map(read))
        return ReadAhead(iterator, next(iterator), 4)

    ahead = reader()
    ahead.next()
    with pytest.raises(tf.errors.InvalidArgumentError, match="corrupt"):
        ahead.next()
    kept = ahead._pull.kept
    assert kept.count() == 2
    gone = weakref.ref(ahead)
    ran = []

    @tf.function
    def traced():
        nonlocal ahead
        del ahead
        gc.collect()
        ran.append([op.type for op in tf.compat.v1.get_default_graph().get_operations()])
        return 1

    traced()
    assert gone() is None and ran == [[]]
    assert kept.count() == 2
    reader()
    assert kept.count() == 0
