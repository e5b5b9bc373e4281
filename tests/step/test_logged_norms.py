"""The norm of the gradient at logged steps: by hand, in all modes, and without any other effect."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.toys import Line, rows

# The gradient of the mean of w x is the mean of x: 1.5, 3.5, 5.5, 7.5, and again.
DATA = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]


class Curve(tfloss.Hook):
    """Keeps what is logged under the names of norms, without the weights of means."""

    def __init__(self):
        self.found = []

    def on_log(self, step, scalars, summaries):
        norms = {k: v for k, v in scalars.items() if k.startswith("gradient_norm")}
        self.found.append((step, norms))


def _curve(steps, model=Line, optimizer=None, *, data=None, strategy=None, **options):
    curve = Curve()
    keras.utils.clear_session(free_memory=False)
    with (strategy or tf.distribute.get_strategy()).scope():
        made = model()
        optimizer = keras.optimizers.SGD(0.5) if optimizer is None else optimizer(made)
    options = {"jit": False, "log_every": 2, "default_hooks": False, **options}
    trainer = tfloss.Trainer(made, optimizer, strategy=strategy, hooks=[curve], **options)
    trainer.train(rows(DATA, 2) if data is None else data, steps)
    return curve.found


EXPECTED = [(2, {"gradient_norm_of_step": 3.5}), (4, {"gradient_norm_of_step": 7.5}), (5, {})]


@pytest.mark.parametrize(("count", "jit"), [(1, False), (2, False), (1, True), (1, "loop")])
def test_the_norm_is_that_of_the_logged_step(count, jit, replicas):
    assert _curve(5, strategy=replicas(count), jit=jit) == EXPECTED


def test_a_resumed_run_has_the_same_curve(tmp_path):
    first = _curve(3, workdir=tmp_path, default_hooks=True)
    assert first == [EXPECTED[0], (3, {})]
    assert _curve(5, workdir=tmp_path, default_hooks=True) == EXPECTED[1:]


def test_all_micro_batches_count():
    assert _curve(2, accumulate=2) == [(2, {"gradient_norm_of_step": 6.5})]


@pytest.mark.parametrize("option", [{"clip_norm": 9.0}, {"skip_nonfinite": True}])
def test_norms_of_all_steps_have_their_own_curve(option):
    assert _curve(2, **option) == [(2, {"gradient_norm": 2.5})]  # the mean of 1.5 and 3.5


class Pair(keras.Model):
    """Two weights, each with its own loss."""

    def __init__(self):
        super().__init__()
        self.a = self.add_weight(name="a", shape=(), initializer="ones")
        self.b = self.add_weight(name="b", shape=(), initializer="ones")

    def call(self, batch, training=False):
        x = tf.reduce_mean(batch["x"])
        return {"a": {"one": self.a * x}, "b": {"two": 2.0 * self.b * x}}


def test_each_group_has_a_norm_if_it_is_due():
    def groups(model):
        return {
            "a": (keras.optimizers.SGD(0.1), lambda model: [model.a]),
            "b": tfloss.Group(keras.optimizers.SGD(0.1), lambda model: [model.b], every=4),
        }

    (_, first), (_, second) = _curve(4, Pair, groups, log_every=1)[0::3]
    assert first == {"gradient_norm_of_step/a": 1.5, "gradient_norm_of_step/b": 3.0}
    assert second == {"gradient_norm_of_step/a": 7.5}


class Table(keras.Model):
    """Looks up row 0 twice and row 1 once."""

    def __init__(self):
        super().__init__()
        self.table = keras.layers.Embedding(3, 1)

    def call(self, batch, training=False):
        return tf.reduce_sum(self.table(tf.constant([0, 0, 1]))) + 0.0 * tf.reduce_mean(batch["x"])


@pytest.mark.parametrize("jit", [False, "loop"])
def test_repeated_rows_are_added_up(jit):
    ((_, found),) = _curve(2, Table, jit=jit)
    assert found["gradient_norm_of_step"] == pytest.approx(np.sqrt(2.0**2 + 1.0**2))


@pytest.mark.parametrize("jit", [False, True, "loop"])
def test_the_weights_are_the_same_bits_without_it(jit):
    def weights(log_every):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(1)
        layers = [keras.layers.Dense(16, activation="gelu"), keras.layers.LayerNormalization()]
        net = keras.Sequential([keras.Input([8]), *layers, keras.layers.Dense(4)])
        model = tfloss.adapters.supervised(net, "mse")
        trainer = tfloss.Trainer(
            model, keras.optimizers.AdamW(0.01), jit=jit, log_every=4, default_hooks=False
        )
        trainer.train_step.log_every = log_every
        x = np.random.default_rng(0).normal(size=(64, 12)).astype("float32")
        data = tf.data.Dataset.from_tensor_slices((x[:, :8], x[:, 8:])).batch(8)
        trainer.train(data.repeat(), 40)
        return [one.numpy() for one in net.weights]

    for one, other in zip(weights(None), weights(4), strict=True):
        np.testing.assert_array_equal(one, other)
