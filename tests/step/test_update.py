"""Gradients are summed over replicas, then unscaled, then clipped, then applied."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.toys import make_step, rows, run
from tfloss.engine.engine import Engine
from tfloss.errors import ModelError


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


@pytest.mark.promise(36)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("options", [{}, {"clip_norm": 1.0, "accumulate": 2}])
def test_float64_weights_beside_half_ones(count, options):
    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="mixed")
            dtypes = {"a": "float64", "b": "bfloat16", "c": "float16", "d": "float32"}
            self.parts = {
                name: self.add_weight(name=name, dtype=dtype, initializer="zeros", autocast=False)
                for name, dtype in dtypes.items()
            }

        def call(self, batch, training=False):
            a, b, c, d = (tf.cast(one.value, tf.float64) for one in self.parts.values())
            return {"loss": tf.reduce_mean(tf.cast(batch["x"], tf.float64)) * (a + b + c + d)}

    # This reduction joins the gradients of a call, as TensorFlow's default does.
    strategy = tf.distribute.MirroredStrategy(
        [f"CPU:{index}" for index in range(count)],
        cross_device_ops=tf.distribute.HierarchicalCopyAllReduce(),
    )
    train_step, _, _ = run(
        Model,
        rows([1.0, 3.0], 2 // options.get("accumulate", 1)),
        strategy=strategy,
        optimizer=lambda: keras.optimizers.SGD(1.0),
        **options,
    )
    # Each gradient is the mean of x. Clipped, each of the four is 1/2.
    expected = 0.5 if options else 2.0
    for weight in train_step.model.parts.values():
        assert float(weight.numpy()) == pytest.approx(-expected)


def test_the_norm_of_half_precision_does_not_overflow():
    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="half")
            self.w = self.add_weight(shape=(2,), dtype="float16", initializer="zeros", name="w")

        def call(self, batch, training=False):
            return {"loss": 300.0 * tf.reduce_sum(tf.cast(self.w, tf.float32))}

    _, found, _ = run(
        Model, rows([1.0], 1), optimizer=lambda: keras.optimizers.SGD(0.0), clip_norm=1.0
    )
    assert found["gradient_norm"] == pytest.approx(300.0 * np.sqrt(2.0))


def test_an_optimizers_own_global_clipping_of_several_dtypes_is_refused():
    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="mixed")
            self.w = self.add_weight(dtype="float64", initializer="zeros", name="w")
            self.v = self.add_weight(initializer="zeros", name="v")

        def call(self, batch, training=False):
            return {"loss": tf.cast(self.w, tf.float32) + self.v}

    optimizer = keras.optimizers.SGD(1.0, global_clipnorm=1.0)
    with pytest.raises(ModelError, match=r"float32, float64.*clip_norm=1\.0"):
        run(Model, rows([1.0], 1), optimizer=lambda: optimizer)
