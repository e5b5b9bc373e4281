"""Gradients are summed over replicas, then unscaled, then clipped, then applied."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.toys import make_step, rows, run
from tfloss.engine.engine import Engine


class _TwoWeights(keras.Model):
    """Gradient [3, 4] on replica 0 and [0, 0.1] on replica 1: their mean is [1.5, 2.05]."""

    def __init__(self):
        super().__init__(name="m")
        self.w = self.add_weight(name="w", shape=(2,), initializer="ones")

    def call(self, batch, training=False):
        return tf.reduce_sum(self.w * tf.reduce_mean(batch["x"], 0)) if training else batch["x"]


@pytest.mark.promise(8)
@pytest.mark.parametrize("count", [1, 2])
def test_the_gradient_is_clipped_after_it_is_reduced(count, replicas):
    data = rows([[3.0, 4.0], [0.0, 0.1]], 2)
    train_step, found, _ = run(
        _TwoWeights,
        data,
        strategy=replicas(count),
        optimizer=lambda: keras.optimizers.SGD(1.0),
        clip_norm=1.0,
    )
    norm = np.hypot(1.5, 2.05)
    assert found["gradient_norm"] == pytest.approx(norm)
    assert train_step.model.w.numpy() == pytest.approx(1 - np.array([1.5, 2.05]) / norm)


@pytest.mark.promise(8)
@pytest.mark.parametrize("count", [1, 2])
def test_an_optimizers_own_clipping_sees_the_reduced_gradient_too(count, replicas):
    data = rows([[3.0, 4.0], [0.0, 0.1]], 2)
    train_step, _, _ = run(
        _TwoWeights,
        data,
        strategy=replicas(count),
        optimizer=lambda: keras.optimizers.SGD(1.0, global_clipnorm=1.0),
    )
    reduced = np.array([1.5, 2.05])
    assert train_step.model.w.numpy() == pytest.approx(1 - reduced / np.linalg.norm(reduced))


@pytest.mark.promise(8)
@pytest.mark.upstream
def test_upstream_clips_before_it_reduces(replicas):
    strategy = replicas(2)
    with strategy.scope():
        w = tf.Variable([1.0, 1.0])
        optimizer = keras.optimizers.SGD(1.0, global_clipnorm=1.0)
        optimizer.build([w])
    grads = strategy.experimental_distribute_values_from_function(
        lambda c: tf.constant([[3.0, 4.0], [0.0, 0.1]][c.replica_id_in_sync_group])
    )
    tf.function(lambda: strategy.run(lambda g: optimizer.apply([g], [w]), (grads,)))()
    assert w.numpy() != pytest.approx(1 - np.array([3.0, 4.1]) / np.hypot(3.0, 4.1))


def test_gradients_of_several_dtypes_are_clipped_together():
    class Mixed(keras.Model):
        def __init__(self):
            super().__init__(name="mixed")
            self.w = self.add_weight(shape=[], dtype="float64", initializer="zeros", name="w")
            self.v = self.add_weight(shape=[], initializer="zeros", name="v")

        def call(self, batch, training=False):
            return {"loss": 3.0 * tf.cast(self.w, tf.float32) + 4.0 * self.v}

    batches = tf.data.Dataset.from_tensors({"x": tf.ones([2])}).repeat()
    for options in ({"clip_norm": 1.0}, {"clip_norm": 1.0, "skip_nonfinite": True}):
        train_step, iterator = make_step(
            Mixed, batches, optimizer=lambda: keras.optimizers.SGD(1.0), **options
        )
        Engine(train_step).run(iterator, 1)
        model = train_step.model
        np.testing.assert_allclose([model.w.numpy(), model.v.numpy()], [-0.6, -0.8], rtol=1e-6)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("mode", ["graph", "step"])
def test_the_norm_of_an_embeddings_gradient_counts_repeated_rows_together(count, mode, replicas):
    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="model")
            self.table = keras.layers.Embedding(3, 1, embeddings_initializer="ones", name="table")

        def call(self, batch, training=False):
            return {"sum": 100.0 * tf.reduce_mean(self.table(batch["i"]))}

    dataset = tf.data.Dataset.from_tensors({"i": np.zeros(100, np.int32)}).repeat()
    train_step, found, _ = run(
        Model,
        dataset,
        strategy=replicas(count),
        optimizer=lambda: keras.optimizers.SGD(1.0),
        clip_norm=1.0,
        mode=mode,
    )
    assert found["gradient_norm"] == pytest.approx(100.0)
    weights = train_step.model.table.embeddings.numpy().ravel()
    assert weights.tolist() == pytest.approx([0.0, 1.0, 1.0])
