"""Rates by variable: multipliers of updates and exclusions from weight decay, by globs of paths."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.toys import make_step, rows, run
from tfloss.engine.engine import Engine
from tfloss.errors import ModelError
from tfloss.optimizers.groups import Group

GRADIENTS = {"trunk/kernel": 0.25, "trunk/bias": 0.5, "head/kernel": 0.75, "head/bias": 1.0}


class Part(keras.layers.Layer):
    def build(self, shape=None):
        self.kernel = self.add_weight(name="kernel", shape=(), initializer="ones")
        self.bias = self.add_weight(name="bias", shape=(), initializer="ones")


class Net(keras.Model):
    """Four weights of 1, whose gradients are constant."""

    def __init__(self):
        super().__init__(name="net")
        self.trunk, self.head = Part(name="trunk"), Part(name="head")

    def build(self, shape=None):
        self.trunk.build()
        self.head.build()

    def call(self, batch, training=False):
        x = tf.reduce_mean(batch["x"])
        found = zip(GRADIENTS.values(), values(self), strict=True)
        return sum(tf.cast(g * v, tf.float32) for g, v in found) * x


def values(model):
    return [model.trunk.kernel, model.trunk.bias, model.head.kernel, model.head.bias]


def make_net():
    model = Net()
    model.build()
    assert [v.path for v in values(model)] == [f"net/{name}" for name in GRADIENTS]
    return model


def adamw(gradient, rate, decay, steps):
    """The weights after each step, of float64 (Loshchilov and Hutter, algorithm 2)."""
    w, m, v, found = 1.0, 0.0, 0.0, []
    for t in range(1, steps + 1):
        w -= rate * decay * w
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        w -= rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-7)
        found.append(w)
    return found


MULTIPLIERS = {"*/bias": 2.0, "trunk/*": 0.1}
FACTORS = [0.1, 0.2, 1.0, 2.0]


@pytest.mark.parametrize(
    ("mode", "count", "options"),
    [
        ("graph", 1, {}),
        ("graph", 2, {"fused_adam": False}),
        ("step", 2, {"precision": "mixed_float16", "accumulate": 2}),
        ("step", 1, {"precision": "mixed_float16", "skip_nonfinite": True, "fused_adam": False}),
        ("loop", 1, {"accumulate": 2}),
    ],
)
def test_multipliers_and_exclusions_give_the_weights_worked_out_by_hand(
    mode, count, options, replicas
):
    def optimizer():
        adam = keras.optimizers.AdamW(0.125, weight_decay=0.5)
        return Group(adam, rate_multipliers=MULTIPLIERS, no_weight_decay=["*/bias"])

    step, _, _ = run(
        make_net,
        rows([1.0] * 2, 2),
        steps=3,
        mode=mode,
        strategy=replicas(count),
        optimizer=optimizer,
        clip_norm=0.5,
        ema=0.75,
        **options,
    )
    norm = np.sqrt(sum(g**2 for g in GRADIENTS.values()))
    averages = list(step.averages.variables().values())
    for i, (name, gradient) in enumerate(GRADIENTS.items()):
        decay = 0.0 if name.endswith("bias") else 0.5
        expected = adamw(0.5 * gradient / norm, 0.125 * FACTORS[i], decay, 3)
        average = 1.0
        for one in expected:
            average = 0.75 * average + 0.25 * one
        assert values(step.model)[i].numpy() == pytest.approx(expected[-1], abs=1e-5), name
        assert averages[i].numpy() == pytest.approx(average, abs=1e-5), name


OPTIMIZERS = {
    "sgd": lambda rate: keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=0.1),
    "rmsprop": lambda rate: keras.optimizers.RMSprop(rate, momentum=0.5, centered=True),
    "adagrad": keras.optimizers.Adagrad,
    "adadelta": keras.optimizers.Adadelta,
    "adamax": lambda rate: keras.optimizers.Adamax(rate, weight_decay=0.1),
    "nadam": keras.optimizers.Nadam,
    "amsgrad": lambda rate: keras.optimizers.Adam(rate, amsgrad=True, global_clipnorm=0.1),
    "lion": lambda rate: keras.optimizers.Lion(rate, weight_decay=0.1),
    "adafactor": lambda rate: keras.optimizers.Adafactor(rate, weight_decay=0.1),
    "lamb": lambda rate: keras.optimizers.Lamb(rate, weight_decay=0.1),
    "ftrl": lambda rate: keras.optimizers.Ftrl(rate, l1_regularization_strength=0.1),
    "schedule-free": lambda rate: keras.optimizers.ScheduleFreeAdamW(rate, weight_decay=0.1),
    "muon": lambda rate: keras.optimizers.Muon(rate, weight_decay=0.1, adam_weight_decay=0.2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_multiplier_is_a_rate_of_its_own_with_every_optimizer(name):
    make = OPTIMIZERS[name]
    scaled = Group(make(0.25), rate_multipliers={"*": 0.5})
    found = []
    for optimizer in (scaled, Group(make(0.125))):
        step, _, _ = run(make_net, rows([1.0], 1), steps=3, optimizer=lambda o=optimizer: o)
        found.append([v.numpy() for v in values(step.model)])
    assert found[0] != [1.0] * 4
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_a_variable_without_a_multiplier_keeps_its_bits_and_with_zero_it_stays():
    multipliers = {"trunk/*": 0.0}
    found = []
    for optimizer in (
        Group(keras.optimizers.Adam(0.1), rate_multipliers=multipliers),
        Group(keras.optimizers.Adam(0.1)),
    ):
        step, _, _ = run(make_net, rows([1.0], 1), steps=5, optimizer=lambda o=optimizer: o)
        found.append([v.numpy() for v in values(step.model)])
    assert found[0][:2] == [1.0, 1.0]
    assert found[0][2:] == found[1][2:]


@pytest.mark.parametrize("count", [1, 2])
def test_a_constraint_holds_after_the_multiplier(count, replicas):
    """The head's kernel moves from 1 to 1 - 0.5 * 4 * 0.75 = -0.5, and is then made positive."""

    def make():
        model = make_net()
        model.head.kernel.constraint = keras.constraints.NonNeg()
        return model

    group = lambda: Group(keras.optimizers.SGD(4.0), rate_multipliers={"head/kernel": 0.5})  # noqa: E731
    data = rows([1.0] * count, count)
    step, _, _ = run(make, data, optimizer=group, strategy=replicas(count))
    assert [v.numpy() for v in values(step.model)] == [0.0, -1.0, 0.0, -3.0]


def test_multipliers_of_a_group_count_for_it_alone():
    def optimizer():
        sgd = keras.optimizers.SGD
        return {
            "trunk": Group(sgd(1.0), lambda m: m.trunk, rate_multipliers={"*/bias": 0.5}),
            "head": (sgd(1.0), lambda m: m.head),
        }

    step, _, _ = run(make_net, rows([1.0], 1), optimizer=optimizer)
    assert [v.numpy() for v in values(step.model)] == [0.75, 0.75, 0.25, 0.0]


def test_what_was_excluded_from_decay_before_stays_excluded():
    def optimizer():
        sgd = keras.optimizers.SGD(1.0, weight_decay=0.5)
        sgd.exclude_from_weight_decay(var_names=["trunk"])
        return Group(sgd, no_weight_decay=["*/bias"])

    step, _, _ = run(make_net, rows([0.0], 1), optimizer=optimizer)
    assert [v.numpy() for v in values(step.model)] == [1.0, 1.0, 0.5, 1.0]


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate_multipliers": {"trnk/*": 0.1}}, r"\['trnk/\*'\] matches no .* 'net/trunk/kernel'"),
        (
            {"no_weight_decay": ["*/bia"]},
            "no_weight_decay='\\*/bia' matches no .* 'net/trunk/bias'",
        ),
    ],
)
def test_a_glob_that_matches_nothing_is_refused_before_training(arguments, message):
    adam = keras.optimizers.AdamW()
    with pytest.raises(ValueError, match=message):
        make_step(make_net, rows([1.0], 1), optimizer=lambda: Group(adam, **arguments))


@pytest.mark.parametrize("options", ["rate_multipliers", "no_weight_decay"])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_glob_that_matches_only_statistics_is_refused(options, frozen):
    model = keras.Sequential([keras.Input([3]), keras.layers.BatchNormalization(name="norm")])
    model.layers[0].trainable = not frozen
    for glob, effect in (("norm/moving_*", False), ("norm/beta", True), ("norm/*", True)):
        globs = {glob: 0.5} if options == "rate_multipliers" else [glob]
        group = Group(keras.optimizers.AdamW(0.1), **{options: globs})
        if effect:  # also while its layer is frozen
            group.undecayed("optimizer", model)
            continue
        with pytest.raises(ValueError, match=r"norm/moving_\*'.* has no effect: .*moving_mean'"):
            group.undecayed("optimizer", model)


def test_an_exclusion_without_a_decay_is_refused():
    group = Group(keras.optimizers.Adam(), no_weight_decay=["*/bias"])
    with pytest.raises(ValueError, match="no_weight_decay has no effect, since Adam has no"):
        make_step(make_net, rows([1.0], 1), optimizer=lambda: group)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate_multipliers": {"*": -1.0}}, "must be a finite number of at least 0, got -1.0"),
        ({"rate_multipliers": {"*": "2"}}, "must be a finite number"),
        ({"rate_multipliers": ["*"]}, "must be a mapping"),
        ({"no_weight_decay": "*/bias"}, r"must be a list of globs: \['\*/bias'\]"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Group(keras.optimizers.AdamW(), **arguments)


def test_an_optimizer_that_updates_in_its_own_way_is_refused():
    class Own(keras.optimizers.SGD):
        def apply(self, grads, trainable_variables=None):
            for gradient, variable in zip(grads, trainable_variables, strict=True):
                variable.assign_sub(gradient)

    group = Group(Own(), rate_multipliers={"*/bias": 2.0})
    step, iterator = make_step(make_net, rows([1.0], 1), optimizer=lambda: group)
    with pytest.raises(ModelError, match="rate_multipliers can't be used with Own"):
        Engine(step).run(iterator, 1)


# Resuming


def test_a_changed_multiplier_is_configuration_and_the_new_one_applies(tmp_path):
    def trainer(**arguments):
        group = Group(keras.optimizers.SGD(1.0), **arguments)
        options = {"default_hooks": False, "hooks": [tfloss.hooks.SaveCheckpoint()], "jit": False}
        return tfloss.Trainer(make_net(), group, workdir=tmp_path, **options)

    trainer(rate_multipliers={"head/*": 0.5}).train(rows([1.0], 1), 2)
    again = trainer(rate_multipliers={"head/*": 2.0})
    with pytest.warns(
        UserWarning, match=r"argument rate_multipliers was {'head/\*': 0.5} in .*2.0"
    ):
        again.train(rows([1.0], 1), 3)
    # Two steps of half the rate, one of twice the rate.
    expected = [1 - 3 * 0.25, 1 - 3 * 0.5, 1 - 0.75 - 1.5, 1 - 1.0 - 2.0]
    assert [v.numpy() for v in values(again.model)] == expected
