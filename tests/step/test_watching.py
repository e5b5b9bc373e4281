"""Watching: the histograms of a step are those of its tensors."""

import keras
import numpy as np
import tensorflow as tf

from tests.toys import Line, make_step, rows
from tfloss.engine.engine import Engine
from tfloss.step.watched import BUCKETS, WatchRequest
from tfloss.step.watching import _histograms


def test_counts_are_those_of_numpy():
    values = np.random.RandomState(0).randn(3, 1000).astype(np.float32)
    tensors = [*values, values[0, :10], values[1].reshape(10, 100)]
    limits, counts = _histograms([tf.constant(one) for one in tensors])
    for one, limit, found in zip(tensors, limits.numpy(), counts.numpy(), strict=True):
        expected, _ = np.histogram(one.astype(np.float64), BUCKETS, (one.min(), one.max()))
        assert limit.tolist() == [one.min(), one.max()]
        assert found.sum() == one.size
        assert np.abs(found - expected).max() <= 1  # a value at an edge


def test_equal_and_infinite_values():
    limits, counts = _histograms([tf.constant([2.0] * 3), tf.constant([np.nan, np.inf, 1.0])])
    assert limits.numpy().tolist() == [[2.0, 2.0], [0.0, 1.0]]
    assert counts.numpy()[:, 0].tolist() == [3, 2]
    assert counts.numpy()[:, -1].tolist() == [0, 1]


def test_only_what_is_asked_for():
    step, iterator = make_step(
        lambda: Line(lambda model, batch, y: {"a": tf.reduce_mean(y), "b": tf.reduce_mean(-y)}),
        rows([1.0], 1),
        optimizer=lambda: keras.optimizers.SGD(0.5),
    )
    engine = Engine(step)
    (found,) = engine.run(iterator, 1, watch=WatchRequest(("w",), (), histograms=False)).watched
    assert found.names.variables == ("line/w",)
    assert (found.counts.shape, found.ranges.shape) == ((0, 3, BUCKETS), (0, 3, 2))
    assert not found.products.any()
    (found,) = engine.run(iterator, 1, watch=WatchRequest((), ("w",), histograms=True)).watched
    assert found.norms.shape == (0, 3)
    assert found.products.tolist() == [[1.0, -1.0], [-1.0, 1.0]]
    assert engine.run(iterator, 1).watched == ()
