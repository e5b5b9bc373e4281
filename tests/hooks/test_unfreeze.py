"""Unfreeze: frozen until a step, then trained, with everything else on."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.toys import rows
from tfloss.hooks import Hook, OnSteps, SaveCheckpoint, Unfreeze

GRADIENTS = {"trunk/kernel": 0.25, "trunk/norm/beta": 1.0, "head/kernel": 0.5, "head/bias": 0.75}
AT, STEPS = 2, 5


class Trunk(keras.layers.Layer):
    def __init__(self):
        super().__init__(name="trunk")
        self.norm = keras.layers.BatchNormalization(name="norm", scale=False)

    def build(self, shape):
        self.kernel = self.add_weight(name="kernel", shape=(), initializer="ones")
        self.norm.build(shape)

    def call(self, x, training=False):
        return 0.25 * self.kernel + tf.reduce_mean(self.norm(x, training=training))


class Head(keras.layers.Layer):
    def build(self, shape=None):
        self.kernel = self.add_weight(name="kernel", shape=(), initializer="ones")
        self.bias = self.add_weight(name="bias", shape=(), initializer="ones")

    def call(self, x):
        return x + 0.5 * self.kernel + 0.75 * self.bias


class Net(keras.Model):
    """Each weight has a constant gradient: that of beta is 1 in either mode of the layer."""

    def __init__(self):
        super().__init__(name="net")
        self.trunk, self.head = Trunk(), Head(name="head")

    def call(self, batch, training=False):
        loss = self.head(self.trunk(batch["x"][:, None], training=training))
        return tf.cast(loss, tf.float32)


def weights(model):
    return [model.trunk.kernel, model.trunk.norm.beta, model.head.kernel, model.head.bias]


def adam(gradients, rate):
    """The weights of each step, in float64; no gradient means no update."""
    w, m, v, found = 0.0, 0.0, 0.0, []
    for t, g in enumerate(gradients, 1):
        if g is not None:
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            w -= rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-7)
        found.append(w)
    return found


class Kill(Hook):
    def __init__(self, *steps):
        self.every = OnSteps(*steps)

    def after_step(self, step):
        raise RuntimeError("killed")


def trainer(strategy=None, workdir=None, hooks=(), optimizer=None, **options):
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        keras.utils.set_random_seed(0)
        make = optimizer or (lambda: tfloss.Group(keras.optimizers.Adam(0.125)))
        return tfloss.Trainer(
            Net(),
            make(),
            strategy=strategy,
            workdir=workdir,
            hooks=[Unfreeze(AT, "trunk/*"), *hooks],
            default_hooks=False,
            **options,
        )


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def data(count=1):
    return rows([1.0] * 2 * count, 2 * count)


@pytest.mark.parametrize(
    ("jit", "count", "options"),
    [
        (False, 1, {}),
        slow(False, 2, {"precision": "mixed_float16", "accumulate": 2}),
        slow(True, 2, {"fused_adam": False, "skip_nonfinite": True}),
        slow("loop", 1, {"accumulate": 2}),
    ],
)
def test_frozen_then_thawed_gives_the_weights_worked_out_by_hand(
    jit, count, options, replicas, messages
):
    def optimizer():
        return tfloss.Group(keras.optimizers.Adam(0.125), rate_multipliers={"head/*": 2.0})

    one = trainer(replicas(count), optimizer=optimizer, jit=jit, clip_norm=0.5, ema=0.75, **options)
    one.train(data(count), STEPS)
    assert sum("traced again" in text for text in messages) == 1
    averages = one.train_step.averages.variables()
    head = np.hypot(0.5, 0.75)
    everything = np.sqrt(sum(g**2 for g in GRADIENTS.values()))
    for (name, g), weight in zip(GRADIENTS.items(), weights(one.model), strict=True):
        before = 0.5 * g / head if name.startswith("head") else None
        gradients = [before] * AT + [0.5 * g / everything] * (STEPS - AT)
        first = 0.0 if name.endswith("beta") else 1.0
        expected = [first + w for w in adam(gradients, 0.25 if before else 0.125)]
        average = first
        for value in expected:
            average = 0.75 * average + 0.25 * value
        np.testing.assert_allclose(weight.numpy(), expected[-1], atol=2e-5, err_msg=name)
        np.testing.assert_allclose(averages[f"ema/{weight.path}"].numpy(), average, atol=2e-5)
    # In inference mode until the thaw, the statistics stay; then they move towards the mean, 1.
    batches = (STEPS - AT) * options.get("accumulate", 1)
    moving = one.model.trunk.norm.moving_mean.numpy()
    np.testing.assert_allclose(moving, 1 - 0.99**batches, atol=1e-6)


@pytest.mark.parametrize(
    ("kill", "jit", "count"),
    [slow(1, False, 2), slow(2, "loop", 1), slow(2, True, 1), (3, False, 1)],
)
def test_a_run_killed_before_at_or_after_the_thaw_is_resumed_to_the_bit(
    kill, jit, count, tmp_path, replicas
):
    strategy = replicas(count)
    options = {"jit": jit, "ema": 0.75, "clip_norm": 0.5}

    def saving(*more):
        return [SaveCheckpoint(OnSteps(kill)), *more]

    whole = trainer(strategy, tmp_path / "whole", saving(), **options)
    whole.train(data(count), STEPS)
    with pytest.raises(RuntimeError, match="killed"):
        trainer(strategy, tmp_path / "killed", saving(Kill(kill + 1)), **options).train(
            data(count), STEPS
        )
    again = trainer(strategy, tmp_path / "killed", saving(), **options)
    again.train(data(count), STEPS)
    expected, found = whole.state.variables(), again.state.variables()
    assert expected.keys() == found.keys()
    for name, variable in expected.items():
        np.testing.assert_array_equal(found[name].numpy(), variable.numpy(), err_msg=name)
    assert whole.model.trunk.kernel.numpy() != 1.0


def test_a_whole_group_is_frozen_until_the_thaw():
    def optimizer():
        sgd = keras.optimizers.SGD
        return {"trunk": (sgd(1.0), lambda m: m.trunk), "head": (sgd(1.0), lambda m: m.head)}

    one = trainer(optimizer=optimizer, jit=False)
    one.train(data(), AT + 1)
    assert [np.ravel(w.numpy())[0] for w in weights(one.model)] == [0.75, -1.0, -0.5, -1.25]
    assert [int(o.iterations.numpy()) for o in one.train_step.optimizers.values()] == [1, 3]


@pytest.mark.parametrize("groups", [False, True])
def test_losses_of_the_frozen_part_count_from_the_thaw(groups):
    """An activity regularizer and a loss of its own reach only what is frozen: that is no mistake.

    The trunk's kernel has the gradients 2 of its own loss, 1 of the regularizer and 3 of the head's
    loss: 1 - (2 + 1 + 3) / 8 = 0.25 after the thaw, if the head stays.
    """

    class Squares(keras.Model):
        def __init__(self):
            super().__init__(name="net")
            ones = {"use_bias": False, "kernel_initializer": "ones"}
            self.trunk = keras.layers.Dense(
                1, activity_regularizer=tf.reduce_sum, name="trunk", **ones
            )
            self.head = keras.layers.Dense(1, name="head", **ones)

        def call(self, batch, training=False):
            y = self.trunk(batch["x"][:, None])
            return {"own": tf.reduce_mean(y**2), "mean": tf.reduce_mean(3.0 * self.head(y))}

    sgd = keras.optimizers.SGD
    model = Squares()
    optimizer = (
        {"t": (sgd(0.125), model.trunk), "h": (sgd(0.0), model.head)} if groups else sgd(0.125)
    )
    hooks = [Unfreeze(AT, "trunk/*")]
    one = tfloss.Trainer(model, optimizer, hooks=hooks, default_hooks=False, jit=False)
    one.train(rows([1.0], 1), AT)
    assert model.trunk.kernel.numpy() == 1.0
    one.train(rows([1.0], 1), AT + 1)
    head = 1.0 if groups else 1.0 - AT * 0.375
    assert model.trunk.kernel.numpy() == 1.0 - (2.0 + 1.0 + 3.0 * head) / 8


class Repeated(tfloss.TrainStep):
    """Two calls for the trunk, then one for the head."""

    def step(self, batch):
        for _ in range(2):
            losses = self.minimize(self.named("t"), batch, group="trunk")
        return {**losses, **self.minimize(self.named("h"), batch, group="head")}

    def named(self, name):
        return lambda batch: {name: self.model(batch, training=True)}


def test_a_step_of_its_own_may_minimize_a_frozen_group():
    def optimizer():
        sgd = keras.optimizers.SGD
        return {"trunk": (sgd(1.0), lambda m: m.trunk), "head": (sgd(1.0), lambda m: m.head)}

    one = trainer(optimizer=optimizer, jit=False, train_step=Repeated)
    one.train(data(), AT + 2)
    assert [np.ravel(w.numpy())[0] for w in weights(one.model)] == [0.0, -4.0, -1.0, -2.0]
    assert [int(o.iterations.numpy()) for o in one.train_step.optimizers.values()] == [4, 4]


@pytest.mark.slow
@pytest.mark.parametrize(("jit", "count"), [(False, 2), (True, 2), ("loop", 1)])
def test_repeated_calls_with_a_thaw_in_between_are_resumed_to_the_bit(
    jit, count, tmp_path, replicas
):
    """Gradients are constant: two updates of the trunk a step after the thaw, one of the head."""

    def optimizer():
        sgd = keras.optimizers.SGD
        group = tfloss.Group(sgd(1.0), lambda m: m.trunk, rate_multipliers={"*/beta": 0.5})
        return {"trunk": group, "head": (sgd(1.0), lambda m: m.head)}

    strategy = replicas(count)

    def make(where, *hooks):
        options = {"precision": "mixed_float16", "accumulate": 2, "ema": 0.75, "clip_norm": 100.0}
        hooks = [SaveCheckpoint(OnSteps(AT)), *hooks]
        return trainer(
            strategy,
            tmp_path / where,
            hooks,
            optimizer,
            jit=jit,
            train_step=Repeated,
            **options,
        )

    whole = make("whole")
    whole.train(data(count), AT + 2)
    assert [np.ravel(w.numpy())[0] for w in weights(whole.model)] == [0.0, -2.0, -1.0, -2.0]
    with pytest.raises(RuntimeError, match="killed"):
        make("killed", Kill(AT + 1)).train(data(count), AT + 2)
    again = make("killed")
    again.train(data(count), AT + 2)
    expected, found = whole.state.variables(), again.state.variables()
    assert expected.keys() == found.keys()
    for name, variable in expected.items():
        np.testing.assert_array_equal(found[name].numpy(), variable.numpy(), err_msg=name)


@pytest.mark.slow
def test_a_part_of_a_compiled_model_is_thawed_as_by_hand():
    """The reference sets `trainable`, and applies the gradients that there are."""
    x = np.random.RandomState(0).randn(12, 3).astype(np.float32)
    batches = tf.data.Dataset.from_tensor_slices((x, x[:, :1] ** 2)).batch(4)

    def make():
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(0)
        inputs = keras.Input([3])
        layers = [keras.layers.Dense(4, use_bias=False), keras.layers.BatchNormalization()]
        backbone = keras.Sequential(layers, name="backbone")
        model = keras.Model(inputs, keras.layers.Dense(1, name="head")(backbone(inputs)))
        model.compile(keras.optimizers.Adam(0.1), "mse")
        model.optimizer.build(model.trainable_variables)
        return model

    model = make()
    one = tfloss.Trainer(
        tfloss.adapters.from_compiled(model),
        model.optimizer,
        hooks=[Unfreeze(1, "backbone/*")],
        default_hooks=False,
        jit=False,
        fused_adam=False,
    )
    one.train(batches, 3)
    reference = make()
    for step, (features, labels) in enumerate(batches):
        reference.get_layer("backbone").trainable = step > 0
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((reference(features, training=True) - labels) ** 2)
        trained = reference.trainable_variables
        reference.optimizer.apply(tape.gradient(loss, trained), trained)
    for ours, theirs in zip(model.weights, reference.weights, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=1e-6, err_msg=ours.path)
    assert model.get_layer("backbone").trainable


def test_flags_are_the_scripts_between_two_calls_and_traces_are_kept(messages):
    one = trainer(jit=False)
    one.train(data(), 1)
    assert one.model.trunk.trainable and one.model.trunk.norm.trainable
    engine = one._modes._engines["graph"]
    one.train(data(), AT)
    assert one._modes._engines["graph"] is engine
    assert one.model.trunk.kernel.numpy() == 1.0
    one.train(data(), AT + 1)
    assert one.model.trunk.kernel.numpy() != 1.0
    assert not any("traced again" in text for text in messages)


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        (lambda: Unfreeze(2, "trnk/*"), r"Unfreeze\(2, 'trnk/\*'\) matches no .*'net/trunk/"),
        (lambda: Unfreeze(2, "*"), "would freeze every trainable variable"),
        (lambda: Unfreeze(2, ["trunk/*", "head/*"]), "must be a text such as .*several hooks"),
        (lambda: Unfreeze(0, "*"), "at least 1"),
        (lambda: Unfreeze(2.5, "*"), "must be an integer"),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_first_step(hook, message):
    with pytest.raises(ValueError, match=message):
        one = trainer(jit=False)
        one.train(data(), 3, hooks=[hook()])
    assert message.startswith(("at", "must")) or one.step == 0
