"""Float8 layers: their scales and maxima are those of the whole batch, and no weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tfloss.errors import ModelError
from tfloss.step.overwritten_variables import split_reached

X = np.array([[3.0, -1.0], [0.5, 1.0], [-2.0, 0.25], [1.0, 1.0]], np.float32)
# The loss is the mean of 8 squares of y, which change by 2 y / 8.


class _Float8(keras.Model):
    def __init__(self, uses=1):
        super().__init__(name="model")
        weights = keras.initializers.Constant(np.array([[0.5, -1.0], [0.25, 0.75]]))
        self.dense = keras.layers.Dense(
            2, dtype="float8_from_float32", kernel_initializer=weights, name="dense"
        )
        self.dense.build((None, 2))
        self.uses = uses

    def call(self, batch, training=False):
        factors = (1.0, 0.25)[: self.uses]
        found = [self.dense(factor * batch["x"], training=training) for factor in factors]
        return {f"use_{i}": tf.reduce_mean(y**2) for i, y in enumerate(found)}


def _trained(batch, steps, strategy=None, uses=1, rate=0.01, **options):
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        trainer = tfloss.Trainer(
            _Float8(uses),
            keras.optimizers.AdamW(rate, weight_decay=0.5),
            strategy=strategy,
            default_hooks=False,
            **options,
        )
    data = tf.data.Dataset.from_tensor_slices({"x": X}).batch(batch).repeat()
    trainer.train(data, steps=steps)
    return _values(trainer.model), trainer


def _values(model):
    return {v.name: v.numpy() for v in model.trainable_variables}


def _plain(steps, gradients=lambda g: g, optimizer=None):
    """A loop in plain Keras, on one replica."""
    model = _Float8()
    optimizer = optimizer or keras.optimizers.AdamW(0.01, weight_decay=0.5)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = model({"x": X}, training=True)["use_0"]
        found = tape.gradient(loss, [v.value for v in model.trainable_variables])
        optimizer.apply([gradients(g) for g in found], model.trainable_variables)

    for _ in range(steps):
        step()
    return _values(model)


@pytest.mark.promise(35)
@pytest.mark.parametrize(
    ("count", "batch", "options"),
    [
        (1, 4, {}),
        (1, 4, {"jit": "loop"}),
        (1, 4, {"clip_norm": 1e6}),
        (1, 2, {"accumulate": 2}),
        (2, 4, {}),
        pytest.param(2, 4, {"jit": True, "skip_nonfinite": True}, marks=pytest.mark.slow),
        (2, 2, {"accumulate": 2, "ema": 0.9}),
    ],
)
def test_the_numbers_are_those_of_plain_keras_on_one_replica(count, batch, options, replicas):
    found, trainer = _trained(batch, 4, replicas(count), **options)
    for name, value in _plain(4).items():
        # Another order of sums can round a gradient to the next float8 number.
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
    # The largest input of all replicas and micro-batches, at each of the four steps.
    assert found["inputs_amax_history"][:4].tolist() == [3.0, 0.0, 0.0, 0.0]
    assert found["inputs_amax_history"][-3:].tolist() == [3.0, 3.0, 3.0]
    assert found["inputs_scale"] == pytest.approx(3.0 / 448.0)
    for variable in trainer.model.trainable_variables:
        for copy in trainer.strategy.experimental_local_results(variable.value):
            np.testing.assert_array_equal(copy.numpy(), variable.numpy())


@pytest.mark.promise(35)
@pytest.mark.upstream
def test_keras_keeps_other_histories_on_each_replica(replicas):
    strategy = replicas(2)
    with strategy.scope():
        model = _Float8()
        optimizer = keras.optimizers.SGD(0.0)
        optimizer.build(model.trainable_variables)
    data = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(X[2 * context.replica_id_in_sync_group :][:2])
    )

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            loss = model({"x": x}, training=True)["use_0"]
        found = tape.gradient(loss, [v.value for v in model.trainable_variables])
        optimizer.apply(found, model.trainable_variables)

    strategy.run(step, (data,))
    history = model.dense.inputs_amax_history.value
    largest = [float(copy[0]) for copy in strategy.experimental_local_results(history)]
    assert largest == [3.0, 2.0]


@pytest.mark.promise(35)
@pytest.mark.upstream
def test_a_tape_sums_the_histories_of_a_layer_that_is_called_twice():
    model = _Float8(uses=2)

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            loss = tf.add_n(list(model({"x": X}, training=True).values()))
        return tape.gradient(loss, model.dense.inputs_amax_history.value)

    assert float(gradient()[0]) == 3.75  # 3 and 0.75


@pytest.mark.promise(35)
@pytest.mark.parametrize(
    ("count", "batch", "options"),
    [(1, 4, {}), pytest.param(2, 2, {"accumulate": 2, "jit": True}, marks=pytest.mark.slow)],
)
def test_a_layer_that_is_called_twice_keeps_the_larger_value(count, batch, options, replicas):
    found, _ = _trained(batch, 5, replicas(count), uses=2, **options)
    assert found["inputs_amax_history"].max() == 3.0
    assert found["inputs_scale"] == pytest.approx(3.0 / 448.0)


@pytest.mark.promise(35)
def test_clipping_and_norms_leave_them_out():
    _, trainer = _trained(4, 1, clip_norm=1e-3)
    found = _values(trainer.model)
    assert found["inputs_amax_history"][0] == 3.0
    logged = []

    class Log(tfloss.Hook):
        def on_log(self, step, scalars, summaries):
            logged.append(scalars["gradient_norm"])

    strategy = tf.distribute.get_strategy()
    trainer = tfloss.Trainer(
        _Float8(),
        keras.optimizers.SGD(0.0),
        strategy=strategy,
        hooks=[Log()],
        default_hooks=False,
        clip_norm=1e6,
        log_every_step=1,
    )
    trainer.train(tf.data.Dataset.from_tensors({"x": X}).repeat(), steps=1)
    y = X @ np.array([[0.5, -1.0], [0.25, 0.75]])
    # About: float8 rounds to 3 or 4 bits.
    expected = np.sqrt(np.sum((X.T @ y / 4) ** 2) + np.sum((y.sum(0) / 4) ** 2))
    assert logged[0] == pytest.approx(expected, rel=0.1)


@pytest.mark.promise(35)
def test_a_loss_scale_stays_in_the_history_of_the_gradients_that_it_scales():
    found, trainer = _trained(4, 1, rate=0.0, precision="mixed_float16")
    alone = _plain(1)
    # The layer quantizes scaled gradients, so their maximum is that of scaled ones.
    scale = float(trainer.train_step.skipping.loss_scale.value.numpy())
    name = "outputs_grad_amax_history"
    assert found[name][0] == pytest.approx(scale * alone[name][0])
    assert found["inputs_amax_history"][0] == 3.0


def test_a_skipped_update_leaves_them_as_they_were():
    bad = np.where(np.arange(4)[:, None] < 2, X, np.float32(np.nan))
    with tf.distribute.get_strategy().scope():
        trainer = tfloss.Trainer(
            _Float8(), keras.optimizers.SGD(0.1), default_hooks=False, skip_nonfinite=True
        )
    data = tf.data.Dataset.from_tensor_slices({"x": bad}).batch(2).repeat()
    trainer.train(data, steps=2)
    assert _values(trainer.model)["inputs_amax_history"][:2].tolist() == [3.0, 0.0]


@pytest.mark.parametrize("count", [2])
def test_a_replica_without_examples_has_no_maximum(count, replicas):
    strategy = replicas(count)
    with strategy.scope():
        trainer = tfloss.Trainer(
            _Float8(), keras.optimizers.SGD(0.0), strategy=strategy, default_hooks=False
        )
    data = tf.data.Dataset.from_tensor_slices({"x": X[1:2]}).batch(1).repeat()
    data = data.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
    trainer.train(data, steps=1)
    found = _values(trainer.model)
    assert found["inputs_amax_history"][:2].tolist() == [1.0, 0.0]
    assert found["inputs_scale"] == 1.0  # of an empty history: as before


def test_averages_leave_them_out():
    _, trainer = _trained(4, 1, ema=0.9)
    names = [name.split("/")[-1] for name in trainer.train_step.averages.variables()]
    assert names == ["kernel", "bias"]
    before = _values(trainer.model)
    with trainer.averaged():
        inside = _values(trainer.model)
    assert np.any(inside["kernel"] != before["kernel"])
    np.testing.assert_array_equal(inside["kernel_scale"], before["kernel_scale"])


def test_a_layer_in_a_loop_is_refused():
    class Looped(_Float8):
        def call(self, batch, training=False):
            y = tf.map_fn(lambda x: self.dense(x[None], training=training)[0], batch["x"])
            return {"loss": tf.reduce_mean(y**2)}

    trainer = tfloss.Trainer(Looped(), keras.optimizers.SGD(0.1), default_hooks=False)
    data = tf.data.Dataset.from_tensors({"x": X}).repeat()
    with pytest.raises(ModelError, match=r"inputs_scale' is overwritten.*called in a loop"):
        trainer.train(data, steps=1)


def test_variables_are_split_by_group():
    dense = keras.layers.Dense(1, dtype="float8_from_float32")
    dense.build((None, 1))
    variables = {"a": dense.trainable_variables, "b": [keras.Variable(0.0)]}
    gradients = {"a": [tf.ones(())] * 7 + [None], "b": [tf.ones(())]}
    trained, overwritten = split_reached(variables, gradients)
    names = [v.name for v in dense.trainable_variables]
    assert sorted(names[i] for i in trained["a"] + overwritten["a"]) == sorted(names[:7])
    assert all("scale" in names[i] or "amax" in names[i] for i in overwritten["a"])
    assert (trained["b"], overwritten["b"]) == ((0,), ())
