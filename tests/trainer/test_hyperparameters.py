"""A hyperparameter that a hook has set is state; one that the script gives is configuration."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.toys import Line, rows
from tfloss.hooks import Every, Hook, OnSteps, SaveCheckpoint

DATA = rows([1.0], 1)


class Set(Hook):
    """Calls a function of the trainer before some steps."""

    def __init__(self, *steps, set_=None, kill=None):
        self.every = Every(steps=1)
        self.steps, self.set, self.kill = steps, set_, kill

    def after_step(self, step):
        if step in self.steps:
            self.set(self.trainer)
        if step == self.kill:
            raise RuntimeError("killed")


def trainer(workdir, *, hook=None, save=(4,), optimizer=None, strategy=None, model=None, **options):
    strategy = strategy or tf.distribute.get_strategy()
    hooks = [one for one in (hook,) if one is not None]
    if save:
        hooks.insert(0, SaveCheckpoint(OnSteps(*save)))
    with strategy.scope():
        return tfloss.Trainer(
            (model or Line)(),
            (optimizer or (lambda: keras.optimizers.SGD(0.1)))(),
            workdir=workdir,
            strategy=strategy,
            hooks=hooks,
            default_hooks=False,
            **{"jit": False, **options},
        )


def weight(one):
    return float(one.model.w.numpy())


def quarter(one):
    one.optimizer.learning_rate = 0.025


@pytest.mark.promise(47)
@pytest.mark.parametrize(("jit", "count"), [(False, 1), (True, 2), ("loop", 1)])
def test_a_rate_set_by_a_hook_is_kept(tmp_path, replicas, jit, count):
    """y = w: the gradient is 1, so w falls by the sum of the rates: 2 of 0.1, then 0.025."""

    def run(kill, steps=6, **options):
        data = rows([1.0] * count, count)
        hook = Set(2, set_=quarter, kill=kill)
        one = trainer(tmp_path, hook=hook, strategy=replicas(count), jit=jit, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                one.train(data, steps)
            except RuntimeError as error:
                assert "killed" in str(error)
        return weight(one)

    run(5)
    assert run(None) == pytest.approx(1.0 - 2 * 0.1 - 4 * 0.025, abs=1e-6)


@pytest.mark.promise(47)
@pytest.mark.upstream
def test_keras_restores_the_old_rate_over_a_changed_recipe(tmp_path):
    """`BackupAndRestore` can't tell them apart: the recipe's new rate is lost without a word."""

    def fit(rate, epochs):
        model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(rate), "mse")
        backup = keras.callbacks.BackupAndRestore(str(tmp_path), delete_checkpoint=False)
        model.fit(np.ones([2, 1]), np.ones([2, 1]), epochs=epochs, callbacks=[backup], verbose=0)
        return float(model.optimizer.learning_rate.numpy())

    fit(0.1, 1)
    assert fit(0.5, 2) == pytest.approx(0.1)


@pytest.mark.promise(47)
def test_a_changed_recipe_wins_over_the_hook_and_says_so(tmp_path):
    trainer(tmp_path, hook=Set(2, set_=quarter)).train(DATA, 4)
    again = trainer(tmp_path, optimizer=lambda: keras.optimizers.SGD(0.5))
    expected = r"learning rate was 0.1 \(and 0.025 when it was saved\) in .* and is 0.5 now"
    with pytest.warns(UserWarning, match=expected):
        again.train(DATA, 5)
    assert weight(again) == pytest.approx(1.0 - 2 * 0.1 - 2 * 0.025 - 0.5, abs=1e-6)


def test_what_the_script_sets_between_its_calls_is_its_recipe(tmp_path):
    """Rates 0.1 (steps 1, 2), 0.05 by a hook (3), 0.2 by the script (4, 5), 0.01 by a hook."""

    def hook(kill):
        def set_(one):
            one.optimizer.learning_rate = 0.05 if one.step == 2 else 0.01

        return Set(2, 5, set_=set_, kill=kill)

    def script(kill):
        one = trainer(tmp_path, hook=hook(kill), save=(1, 2, 3, 4, 5, 6, 7))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                one.train(DATA, 3)
                one.optimizer.learning_rate = 0.2
                one.train(DATA, 6)
                one.train(DATA, 8)  # goes on with the rate that the hook has set
            except RuntimeError:
                return None
        return weight(one)

    # The hook comes before the checkpoint of its step, which is the one that is resumed from.
    assert [script(kill) for kill in (2, 3, 4, 6, 7)] == [None] * 5
    expected = 1.0 - 2 * 0.1 - 0.05 - 2 * 0.2 - 3 * 0.01
    assert script(None) == pytest.approx(expected, abs=1e-6)


def test_the_script_may_compute_a_rate_from_what_a_hook_has_set(tmp_path):
    """Rates 0.1 (steps 1, 2), 0.05 by a hook (3), 0.025 by the script (4, 5), 0.01 by a hook."""

    def script(kill):
        def halve(one):
            one.optimizer.learning_rate = 0.05 if one.step == 2 else 0.02

        hook = Set(2, 5, set_=halve, kill=kill)
        one = trainer(tmp_path, hook=hook, save=range(1, 9))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                for steps in (3, 6, 8):
                    one.train(DATA, steps)
                    one.optimizer.learning_rate = float(one.optimizer.learning_rate) / 2
            except RuntimeError:
                return None
        return weight(one)

    # The second kill comes in a process that has resumed in the middle of the second call.
    assert [script(kill) for kill in (5, 6, 8)] == [None] * 3
    expected = 1.0 - 2 * 0.1 - 0.05 - 2 * 0.025 - 0.02 - 2 * 0.01
    assert script(None) == pytest.approx(expected, abs=1e-6)


def test_a_number_that_a_hook_sets_counts_from_the_next_step(tmp_path, messages):
    """SGD with weight decay: w <- w (1 - 0.1 decay) - 0.1, with decay 0, 0, then 1."""

    def set_(one):
        one.optimizer.weight_decay = 1.0

    def optimizer():
        return keras.optimizers.SGD(0.1, weight_decay=0.0)

    values = [1.0, 0.9]
    for _ in range(4):
        values.append(values[-1] * 0.9 - 0.1 if len(values) > 2 else values[-1] - 0.1)
    for kill in (5, None):
        hook = Set(2, set_=set_, kill=kill)
        one = trainer(tmp_path, hook=hook, optimizer=optimizer)
        try:
            one.train(DATA, 5)
        except RuntimeError:
            continue
    assert weight(one) == pytest.approx(values[5], abs=1e-6)
    assert any("traced again, since a hook has set optimizer.weight_decay" in m for m in messages)


def test_each_group_has_hyperparameters_of_its_own(tmp_path):
    class Two(keras.Model):
        def __init__(self):
            super().__init__(name="two")
            self.a = self.add_weight(name="a", shape=(), initializer="ones")
            self.b = self.add_weight(name="b", shape=(), initializer="ones")

        def call(self, batch, training=False):
            mean = tf.reduce_mean(batch["x"])
            return {"a": self.a * mean, "b": self.b * mean}

    def set_(one):
        one.train_step.optimizers["b"].learning_rate = 0.5
        one.train_step.optimizers["a"].momentum = 0.5

    def run(kill, steps):
        model = Two()
        one = tfloss.Trainer(
            model,
            {
                "a": (keras.optimizers.SGD(0.1, momentum=0.1), [model.a]),
                "b": (keras.optimizers.SGD(0.1), [model.b]),
            },
            workdir=tmp_path,
            jit=False,
            default_hooks=False,
            hooks=[SaveCheckpoint(OnSteps(2)), Set(1, set_=set_, kill=kill)],
        )
        try:
            one.train(DATA, steps)
        except RuntimeError:
            return None
        return float(model.a.numpy()), float(model.b.numpy())

    assert run(2, 3) is None
    # a: velocities -0.1, -0.1 - 0.05, -0.1 - 0.075; b: 0.1, 0.5, 0.5.
    assert run(None, 3) == pytest.approx((1 - 0.1 - 0.15 - 0.175, 1 - 0.1 - 1.0), abs=1e-6)


@pytest.mark.parametrize("closure", [False, True])
def test_a_loss_weight_may_be_a_variable(tmp_path, closure):
    def run(kill, steps):
        beta = tf.Variable(1.0)
        one = trainer(
            tmp_path,
            hook=Set(1, set_=lambda _: beta.assign(3.0), kill=kill),
            save=(2,),
            loss_weights={"mean": (lambda step: 2.0 * beta) if closure else beta},
        )
        try:
            one.train(DATA, steps)
        except RuntimeError:
            return None
        return weight(one)

    assert run(2, 3) is None
    scale = 2.0 if closure else 1.0
    assert run(None, 3) == pytest.approx(1.0 - 0.1 * scale * (1 + 3 + 3), abs=1e-6)
