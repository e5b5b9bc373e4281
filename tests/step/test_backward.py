"""Losses are each replica's own, and state changes exactly once, whatever the forward pass does."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.toys import make_step
from tfloss.engine.engine import Engine

X = np.arange(1.0, 17.0, dtype=np.float32)
DATA = tf.data.Dataset.from_tensor_slices({"x": X[:, None]}).batch(16, True).repeat()


class Busy(keras.Model):
    """Everything that synchronises, repeats or changes state, between two losses."""

    def __init__(self, kind):
        super().__init__(name="busy")
        self.kind = kind
        self.scale = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones", name="scale")
        self.norm = keras.layers.BatchNormalization(synchronized=True, name="norm")
        self.adder = Adder(name="adder")
        self.inner = keras.Sequential([Adder(name="deep")], name="inner")
        self.total = keras.metrics.Mean(name="total")
        self.mean = tf.Variable(
            0.0,
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_WRITE,
            aggregation=tf.VariableAggregation.MEAN,
        )

    def call(self, batch, training=False):
        x = self.scale(batch["x"])
        if not training:
            return x
        x = self.adder(x)
        if self.kind == "synchronised":
            self.norm(x, training=True)
        if self.kind == "assigned":
            self.mean.assign(tf.reduce_mean(x))
        if self.kind == "metric":
            self.total.update_state(x)
        if self.kind == "reduced":
            replica = tf.distribute.get_replica_context()
            if replica is not None:
                replica.all_reduce(tf.distribute.ReduceOp.SUM, tf.reduce_mean(x))
        if self.kind == "twice":
            self.adder(2.0 * x)
        if self.kind == "branch":
            x = keras.ops.cond(tf.reduce_sum(x) > 0, lambda: x * 1.0, lambda: x * 0.0)
        if self.kind == "function":
            x = tf.function(lambda z: z * 1.0)(x)
        if self.kind == "remat":
            x = tf.recompute_grad(lambda z: z * 1.0)(x)
        self.inner(3.0 * x)
        self.inner(4.0 * x)
        return {"last": 10.0 * tf.reduce_mean(x)}


class Adder(keras.Layer):
    def call(self, x):
        self.add_loss(tf.reduce_mean(x))
        return x


KINDS = [
    "plain",
    "synchronised",
    "assigned",
    "metric",
    "reduced",
    "twice",
    "branch",
    "function",
    "remat",
]


@pytest.mark.promise(1)
@pytest.mark.filterwarnings("ignore:No loss reaches")
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_one_replica(kind, count, replicas):
    train_step, iterator = make_step(lambda: Busy(kind), DATA, strategy=replicas(count))
    block = Engine(train_step).run(iterator, 1)
    found = dict(zip(block.names, block.rows()[0].tolist(), strict=True))
    mean = float(X.mean())
    losses = {
        "losses/last": 10 * mean,
        "losses/busy/adder": mean,
        "losses/busy/inner/deep": 3 * mean,
        "losses/busy/inner/deep_1": 4 * mean,
    }
    if kind == "twice":
        losses["losses/busy/adder_1"] = 2 * mean
    total = sum(losses.values())
    assert found == pytest.approx({**losses, "losses/total": total, "learning_rate": 0.1})
    assert train_step.model.scale.kernel.numpy() == pytest.approx(1 - 0.1 * total)


class Stateful(keras.Model):
    """Counts its forward passes in every way that a model keeps state."""

    def __init__(self):
        super().__init__(name="stateful")
        self.w = self.add_weight(name="w", shape=(), initializer="ones")
        self.norm = keras.layers.BatchNormalization(name="norm", momentum=0.5, center=False)
        self.drop = keras.layers.Dropout(0.5, seed=1, name="drop")
        options = {"trainable": False, "initializer": "zeros"}
        self.codebook = self.add_weight(name="codebook", shape=(), **options)
        self.queue = self.add_weight(name="queue", shape=(4,), **options)

    def call(self, batch, training=False):
        x = batch["x"]
        if training:
            self.norm(x, training=True)
            self.drop(x, training=True)
            self.codebook.assign(0.5 * self.codebook + 0.5)
            self.queue.assign(tf.concat([self.queue[1:], [self.queue[-1] + 1.0]], 0))
        return tfloss.global_mean(self.w * x)


@pytest.mark.promise(1)
@pytest.mark.filterwarnings("ignore:No loss reaches")
@pytest.mark.parametrize("mode", ["graph", "step"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("count", [1, 2])
def test_state_changes_once_a_forward_pass(count, accumulate, mode, replicas):
    data = tf.data.Dataset.from_tensor_slices({"x": np.full([8, 1], 8.0, np.float32)})
    train_step, iterator = make_step(
        Stateful,
        data.batch(8, True).repeat(),
        strategy=replicas(count),
        accumulate=accumulate,
    )
    Engine(train_step, mode=mode).run(iterator, 3)
    model, passes = train_step.model, 3 * accumulate
    local = train_step.strategy.experimental_local_results
    for mean in local(model.norm.moving_mean.value):
        assert float(mean.numpy()[0]) == pytest.approx(8.0 * (1 - 0.5**passes))
    for state in local(model.drop.seed_generator.state.value):
        assert int(state.numpy()[1]) == passes
    for value in local(model.codebook.value):
        assert float(value.numpy()) == pytest.approx(1 - 0.5**passes)
    for value in local(model.queue.value):
        assert value.numpy().tolist() == [max(0.0, passes - 3.0 + i) for i in range(4)]


@pytest.mark.promise(9)
def test_a_replica_without_examples_keeps_its_statistics(replicas):
    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="model")
            self.norm = keras.layers.BatchNormalization(name="norm", momentum=0.5)

        def call(self, batch, training=False):
            return {"mean": tf.reduce_mean(self.norm(batch["x"][:, None], training=training) ** 2)}

    dataset = tf.data.Dataset.from_tensor_slices({"x": np.full(4, 8.0, np.float32)})
    dataset = dataset.batch(4).take(1).concatenate(dataset.take(1).batch(4))  # 4, then 1
    train_step, iterator = make_step(Model, dataset, strategy=replicas(2))
    Engine(train_step).run(iterator, 2)
    mean = train_step.strategy.experimental_local_results(train_step.model.norm.moving_mean.value)
    assert [float(one.numpy()[0]) for one in mean] == [6.0, 4.0]
    for variable in train_step.model.weights:
        assert np.isfinite(variable.numpy()).all(), variable.path
