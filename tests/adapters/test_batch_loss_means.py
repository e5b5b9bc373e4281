"""Losses are means over examples, by name."""

import pytest
import tensorflow as tf

from tfloss.adapters.batch_loss_means import BatchLossMeans


def test_batches_count_by_their_examples():
    means = BatchLossMeans()
    update = tf.function(lambda value, n: means.update_state({"a": value, "b": 2 * value}, n))
    means.reset_state()
    for value, n in [(1.0, 3), (5.0, 1)]:
        update(tf.constant(value), tf.constant(n))
    assert {k: float(v) for k, v in means.result().items()} == {"a": 2.0, "b": 4.0}
    means.reset_state()
    means.update_state({"a": 7.0, "b": 1.0})
    assert float(means.result()["a"]) == pytest.approx(7.0)
