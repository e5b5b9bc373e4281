"""The rate falls where the metric stays, and a resumed run has the same rates."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.toys import Accuracy, Line, rows
from tfloss.hooks import Evaluate, Every, Hook, ReduceOnPlateau, SaveCheckpoint

NAN = float("nan")


class Script(Accuracy):
    """A metric whose values are known in advance, one for each evaluation."""

    def __init__(self, values):
        self.values, self.trainer = values, None

    def result(self):
        return self.values[self.trainer.step - 1]


class Rates(Hook):
    uses_results = True

    def __init__(self):
        self.every, self.found = Every(steps=1), {}

    def after_step(self, step):
        rate = self.trainer.train_step.optimizers["optimizer"].learning_rate
        self.found[step] = float(np.asarray(rate))


def train(values, steps=None, workdir=None, rate=1.0, **options):
    metric, rates = Script(values), Rates()
    hooks = [
        Evaluate(rows([1.0], 1).take(1), {"accuracy": metric}, every=Every(steps=1)),
        ReduceOnPlateau("val/accuracy", factor=0.5, **options),
        rates,
    ]
    if workdir:
        hooks.append(SaveCheckpoint(Every(steps=1000)))
    trainer = tfloss.Trainer(
        Line(), keras.optimizers.SGD(rate), hooks=hooks, workdir=workdir, default_hooks=False,
        jit=False,
    )  # fmt: skip
    metric.trainer = trainer
    trainer.train(rows([1.0], 1), steps or len(values))
    return rates.found


@pytest.mark.parametrize(
    ("values", "options", "rates"),
    [
        # Two evaluations in a row without a new best.
        ([0.5, 0.6, 0.5, 0.6, 0.5, 0.5], {"patience": 2}, [1, 1, 1, 0.5, 0.5, 0.25]),
        # An evaluation of the cooldown doesn't count.
        ([0.5, 0.4, 0.4, 0.4, 0.4], {"patience": 1, "cooldown": 1}, [1, 0.5, 0.5, 0.25, 0.25]),
        ([0.5, 0.4, 0.4, 0.4], {"patience": 1, "min_rate": 0.3}, [1, 0.5, 0.3, 0.3]),
        # Gains of 0.05 don't exceed min_delta, and the best stays 0.5.
        ([0.5, 0.55, 0.58, 0.9], {"patience": 2, "min_delta": 0.1}, [1, 1, 0.5, 0.5]),
        ([3.0, 2.0, 2.5, 1.0], {"patience": 1, "mode": "min"}, [1, 1, 0.5, 0.5]),
        ([NAN, 0.5, NAN], {"patience": 1}, [0.5, 0.5, 0.25]),
    ],
)
def test_the_rate_falls_after_a_plateau(values, options, rates):
    assert list(train(values, **options).values()) == pytest.approx(rates)


def test_it_is_where_reduce_lr_on_plateau_of_keras_is():
    values = np.random.default_rng(3).normal(size=30).round(2).tolist()
    options = {"patience": 3}  # Keras counts the last evaluation of a cooldown, PyTorch doesn't
    callback = keras.callbacks.ReduceLROnPlateau(
        "val", factor=0.5, mode="max", min_delta=0.0, **options
    )
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1.0), "mse")
    callback.set_model(model)
    callback.on_train_begin()
    expected = []
    for epoch, value in enumerate(values):
        callback.on_epoch_end(epoch, {"val": value})
        expected.append(float(np.asarray(model.optimizer.learning_rate)))
    assert len(set(expected)) > 3
    assert list(train(values, **options).values()) == pytest.approx(expected, rel=1e-5)


def test_a_resumed_run_has_the_rates_of_an_uninterrupted_one(tmp_path):
    values = [0.5, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4]
    options = {"patience": 2, "cooldown": 1}
    whole = train(values, **options)
    assert [whole[step] for step in (2, 3, 5, 6)] == [1.0, 0.5, 0.5, 0.25]
    first = train(values, steps=5, workdir=tmp_path, **options)
    second = train(values, workdir=tmp_path, **options)
    assert first | second == whole and set(second) == {6, 7}


def test_the_rate_of_a_new_recipe_applies(tmp_path):
    values = [0.5, 0.4, 0.4, 0.4]
    train(values, steps=2, workdir=tmp_path, patience=1)
    with pytest.warns(UserWarning, match="learning rate was 1 .and 0.5 when it was saved."):
        found = train(values, workdir=tmp_path, patience=1, rate=8.0)
    assert found == {3: 4.0, 4: 2.0}


def test_only_the_named_groups(messages):
    class TwoNets(keras.Model):
        def __init__(self):
            super().__init__()
            self.a, self.b = keras.layers.Dense(1), keras.layers.Dense(1)

        def call(self, batch, training=False):
            found = {
                name: layer(batch["x"][:, None]) for name, layer in (("a", self.a), ("b", self.b))
            }
            return {name: {"mse": tf.reduce_mean(y**2)} for name, y in found.items()}

    def run(groups):
        model = TwoNets()
        optimizers = {
            "a": (keras.optimizers.SGD(0.1), model.a),
            "b": (keras.optimizers.SGD(0.1), model.b),
        }
        plateau = ReduceOnPlateau("losses/total", patience=1, min_delta=100, groups=groups)
        trainer = tfloss.Trainer(
            model, optimizers, hooks=[plateau], default_hooks=False, jit=False, log_every=1
        )
        trainer.train(rows([1.0], 1), 2)
        return [float(optimizer.learning_rate) for optimizer, _ in optimizers.values()]

    assert run(["b"]) == pytest.approx([0.1, 0.01])
    assert "step 2: the learning rate of group 'b' falls from 0.1 to 0.01" in messages[-1]
    assert run(None) == pytest.approx([0.01, 0.01])
    with pytest.raises(ValueError, match="names 'c', which is no optimizer group.*a, b"):
        run(["c"])


def test_a_schedule_is_refused():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    with pytest.raises(ValueError, match=r"ReduceOnPlateau sets the learning rate.*\(SGD\)"):
        train([0.5], rate=schedule)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"factor": 1.0}, r"factor=1.0\): factor must be between 0 and 1"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"cooldown": -1}, "cooldown must be at least 0"),
        ({"min_rate": -0.1}, "min_rate must be at least 0"),
    ],
)
def test_arguments_out_of_range(options, says):
    with pytest.raises(ValueError, match=says):
        ReduceOnPlateau("losses/total", **options)
