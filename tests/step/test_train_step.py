import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.toys import Line, make_step, rows, run
from tfloss import summary
from tfloss.engine.engine import Engine
from tfloss.errors import LossError, ModelError, SummaryError
from tfloss.step.train_step import TrainStep

DATA = rows([1.0, 2.0, 3.0, 4.0], 4)


# Clipping (pains.md 8)


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


@pytest.mark.parametrize("clip_norm", [0, -1.0])
def test_clip_norm_must_be_positive(clip_norm):
    with pytest.raises(ValueError, match="clip_norm must be positive"):
        TrainStep(Line(), keras.optimizers.SGD(), clip_norm=clip_norm)


# Replicas, XLA, K steps a call: the same numbers


class _Net(keras.Model):
    def __init__(self):
        super().__init__(name="net")
        self.blocks = [keras.layers.Dense(8, activation="relu"), keras.layers.Dense(3)]
        self.bn = keras.layers.BatchNormalization(synchronized=True)

    def call(self, batch, training=False):
        x = self.blocks[1](self.bn(self.blocks[0](batch["x"]), training=training))
        if not training:
            return x
        self.add_loss(0.1 * tf.reduce_mean(x**2))
        return {"ce": tf.reduce_mean(tf.nn.log_softmax(x)[:, 0])}


def _trained(steps, per_call, mode="graph", **options):
    keras.utils.set_random_seed(1)
    data = rows(np.random.RandomState(0).randn(64, 5), 16)
    train_step, iterator = make_step(
        _Net, data, optimizer=lambda: keras.optimizers.Adam(0.01), **options
    )
    engine = Engine(train_step, mode=mode)
    blocks = [engine.run(iterator, per_call) for _ in range(steps // per_call)]
    weights = [v.numpy() for v in train_step.model.trainable_variables]
    return weights, np.concatenate([b.rows() for b in blocks]), engine


def test_many_steps_a_call_are_bit_for_bit_single_steps():
    one, curve, _ = _trained(12, 1)
    many, curve_many, engine = _trained(12, 6)
    np.testing.assert_array_equal(curve, curve_many)
    for a, b in zip(one, many, strict=True):
        np.testing.assert_array_equal(a, b)
    assert engine.traces == 1


@pytest.mark.promise(26)
@pytest.mark.parametrize("count", [2, 4])
def test_replicas_agree_with_one_in_calls_of_many_steps(count, replicas):
    one, curve, _ = _trained(12, 6)
    many, curve_many, _ = _trained(12, 6, strategy=replicas(count))
    np.testing.assert_allclose(curve, curve_many, rtol=1e-5, atol=1e-6)
    for a, b in zip(one, many, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_xla_agrees_with_the_graph():
    one, curve, _ = _trained(12, 6)
    compiled, curve_compiled, _ = _trained(12, 6, mode="step")
    np.testing.assert_allclose(curve, curve_compiled, rtol=1e-5, atol=1e-6)
    for a, b in zip(one, compiled, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


# Labels reach the model as they are (pains.md 11)


@pytest.mark.promise(11)
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_labels_reach_the_forward_bit_exact(policy):
    seen = {}

    class Model(keras.Model):
        def __init__(self):
            super().__init__(dtype=policy)
            self.dense = keras.layers.Dense(1, dtype=policy)

        def call(self, batch, training=False):
            seen.update(
                {k: v.dtype for k, v in batch.items()}, compute=self.dense(batch["x"]).dtype
            )
            error = tf.reduce_max(tf.abs(batch["box"] - 70001.0))
            return {
                "e": tf.cast(error, tf.float32)
                + 0.0 * tf.cast(tf.reduce_sum(self.dense.kernel), tf.float32)
            }

    data = tf.data.Dataset.from_tensors(
        {"x": tf.ones([2, 3]), "box": tf.fill([2], 70001.0), "f64": tf.ones([2], tf.float64)}
    ).repeat()
    with pytest.warns(UserWarning, match="bias"):
        _, found, _ = run(Model, data)
    assert found["losses/e"] == 0.0
    assert seen["box"] == tf.float32 and seen["f64"] == tf.float64
    assert (
        seen["compute"]
        == {"float32": tf.float32, "mixed_bfloat16": tf.bfloat16, "mixed_float16": tf.float16}[
            policy
        ]
    )


@pytest.mark.promise(11)
@pytest.mark.upstream
def test_upstream_casts_labels():
    class Model(keras.Model):
        def call(self, batch):
            return batch["box"]

    boxes = Model(dtype="mixed_float16")({"box": tf.constant([70001.0])})
    assert not np.isfinite(boxes.numpy()).all()


# A batch may be any nest


@pytest.mark.parametrize("count", [1, 2])
def test_batches_of_tuples_strings_and_ragged_tensors(count, replicas):
    class Model(Line):
        def call(self, batch, training=False):
            (x, words), ragged = batch
            size = tf.cast(tf.strings.length(words), tf.float32)
            total = tf.reduce_mean(self.w * (x + size + tf.reduce_sum(ragged, -1)))
            return total if training else x

    ragged = tf.ragged.constant([[1.0], [2.0, 3.0], [], [4.0]])
    data = tf.data.Dataset.from_tensor_slices(
        (([1.0, 2.0, 3.0, 4.0], ["a", "bb", "", "c"]), ragged)
    )
    data = data.batch(4, drop_remainder=True).repeat()
    _, found, _ = run(Model, data, strategy=replicas(count))
    assert found["losses/loss"] == pytest.approx((10 + 4 + 10) / 4)


# Variables


def test_building_computes_nothing_and_changes_no_state():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.bn = keras.layers.BatchNormalization()
            self.drop = keras.layers.Dropout(0.5, seed=3)
            self.out = keras.layers.Dense(1)

        def call(self, batch, training=False):
            x = self.drop(self.bn(batch["x"], training=training), training=training)
            return tf.reduce_mean(self.out(x)) if training else x

    train_step, _ = make_step(Model, rows(np.ones([4, 2]), 4))
    model = train_step.model
    assert model.bn.moving_mean.numpy().tolist() == [0.0, 0.0]
    assert model.drop.seed_generator.state.numpy().tolist() == [3, 0]
    assert train_step.optimizers["optimizer"].iterations.numpy() == 0


def test_an_error_in_the_models_call_is_shown_as_it_is():
    class Model(Line):
        def call(self, batch, training=False):
            return {"a": tf.reduce_mean(self.w * batch["labels"])}

    with pytest.raises(KeyError, match="labels"):
        make_step(Model, DATA)


@pytest.mark.parametrize("what", ["model", "optimizer"])
def test_a_model_or_optimizer_of_another_scope_is_refused(what, replicas):
    strategy = replicas(2)
    model, optimizer = Line(), keras.optimizers.SGD(0.1)
    with strategy.scope():
        model = Line() if what == "optimizer" else model
        optimizer = keras.optimizers.SGD(0.1) if what == "model" else optimizer
        train_step = TrainStep(model, optimizer)
    with pytest.raises(ModelError, match=f"{what}.* was created outside of the scope"):
        train_step.build(DATA.element_spec)


def test_a_model_without_trainable_variables_is_refused():
    class Model(keras.Model):
        def call(self, batch, training=False):
            return tf.reduce_mean(batch["x"])

    with pytest.raises(ModelError, match="nothing to train"):
        make_step(Model, DATA)


# Other algorithms


class _Alternating(TrainStep):
    """Minimises |w - 3| for one weight, then, with its new value, |v - w| for the other."""

    def step(self, batch):
        m = self.model
        first = self.minimize(
            lambda b: {"w": tf.reduce_mean(tf.abs(m.w - 3.0 * b["x"] / b["x"]))},
            batch,
            group="w",
        )
        second = self.minimize(
            lambda b: {"v": tf.abs(m.v - tf.stop_gradient(tf.identity(m.w)))},
            batch,
            group="v",
        )
        return {**first, **second}


class _Pair(keras.Model):
    def __init__(self):
        super().__init__(name="pair")
        self.w = self.add_weight(name="w", shape=(), initializer="zeros")
        self.v = self.add_weight(name="v", shape=(), initializer="zeros")
        self.built = True


@pytest.mark.parametrize("count", [1, 2])
def test_a_step_of_two_alternating_updates(count, replicas):
    train_step, found, _ = run(
        _Pair,
        DATA,
        steps=2,
        strategy=replicas(count),
        step=_Alternating,
        optimizer=lambda: {
            "w": (keras.optimizers.SGD(1.0), lambda model: [model.w]),
            "v": (keras.optimizers.SGD(0.5), lambda model: [model.v]),
        },
    )
    # w: 0, 1, 2. v is pulled to the new w: 0.5, 1. Losses of step 2: |1-3|, |0.5-2|.
    assert train_step.model.w.numpy() == pytest.approx(2.0)
    assert train_step.model.v.numpy() == pytest.approx(1.0)
    assert (found["losses/w"], found["losses/v"]) == (2.0, 1.5)
    assert found["losses/total"] == 3.5
    assert train_step.counter.numpy() == 2


@pytest.mark.parametrize("kind", ["loss", "summary"])
def test_two_updates_must_report_under_different_names(kind):
    class Twice(TrainStep):
        def step(self, batch):
            def forward(name):
                def replica(b):
                    summary.scalar("s" if kind == "summary" else name, 1.0)
                    return {"a" if kind == "loss" else name: tf.reduce_mean(self.model.w * b["x"])}

                return replica

            return {**self.minimize(forward("x"), batch), **self.minimize(forward("y"), batch)}

    train_step, iterator = make_step(Line, DATA, step=Twice)
    with pytest.raises((LossError, SummaryError), match="minimize"):
        Engine(train_step).run(iterator, 1, recording=True)


def test_a_step_that_updates_nothing_is_refused():
    class Idle(TrainStep):
        def step(self, batch):
            return {}

    train_step, iterator = make_step(Line, DATA, step=Idle)
    with pytest.raises(LossError, match="never called self.minimize"):
        Engine(train_step).run(iterator, 1)
