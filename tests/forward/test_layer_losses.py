"""`layer.losses` inside a training forward: each loss and each regularizer counts once."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.toys import make_step, rows, run
from tfloss.engine.engine import Engine
from tfloss.errors import LossError

ROWS = [[1.0, 3.0], [2.0, 4.0], [0.0, 5.0], [3.0, 0.0]]
MODES = pytest.mark.parametrize(("mode", "count"), [("graph", 1), ("graph", 2), ("step", 2)])


class Net(keras.Model):
    """y = a x1 + b x2 with a = b = 1 and the regularizer a^2 + b^2; an encoder adds mean(x).

    A shared regularized layer is called twice; its activity regularizer counts each call.
    """

    def __init__(self, report):
        super().__init__(name="net")
        self.dense = keras.layers.Dense(
            1, name="dense", use_bias=False, kernel_initializer="ones", kernel_regularizer=L2
        )
        self.report = report
        self.compile(loss="mse")

    def call(self, batch, training=False):
        y = self.dense(batch["x"])
        return self.report(self, batch, y) if training else y


class Adds(keras.Layer):
    """Scales by w = 1, and adds the mean of the result as a loss."""

    def build(self, shape):
        self.w = self.add_weight(name="w", shape=(), initializer="ones")

    def call(self, x):
        self.add_loss(tf.reduce_mean(self.w * x))
        return self.w * x


L2 = keras.regularizers.L2(1.0)
Y = np.sum(ROWS, 1)
MSE = float(np.mean(Y**2))  # the targets are 0
# d/da mean(y^2) = 2 mean(y x1), and 2 a of the regularizer.
GRADIENT = 2 * np.mean(Y[:, None] * np.asarray(ROWS), 0)


def _returned(model, batch, y):
    return {"fit": tf.reduce_mean(y**2) + sum(model.losses)}


def _added(model, batch, y):
    model.add_loss(tf.reduce_mean(y**2))
    model.add_loss(tf.add_n(model.losses))


def _by_keras(model, batch, y):
    return model.compute_loss(x=batch["x"], y=tf.zeros_like(y), y_pred=y)


def _sublayer(model, batch, y):
    return {"fit": tf.reduce_mean(y**2), "mine": tf.add_n(model.dense.losses)}


def _looked_at(model, batch, y):
    tfloss.summary.scalar("penalty", tf.add_n(model.losses))
    return tf.reduce_mean(y**2)


def _read_twice(model, batch, y):
    model.add_loss(tf.add_n(model.losses))  # contains the regularizer
    return {"fit": tf.reduce_mean(y**2) + sum(model.losses)}  # which is not listed again


REPORTS = [_returned, _added, _by_keras, _sublayer, _looked_at, _read_twice]


@MODES
@pytest.mark.parametrize("report", REPORTS)
def test_a_regularizer_counts_once_however_it_is_read(report, mode, count, replicas):
    train_step, found, _ = run(
        lambda: Net(report), rows(ROWS, 4), strategy=replicas(count), mode=mode
    )
    assert found["losses/total"] == pytest.approx(MSE + 2.0)
    np.testing.assert_allclose(
        train_step.model.dense.kernel.numpy()[:, 0], 1 - 0.1 * (GRADIENT + 2.0), rtol=1e-6
    )
    own = {name for name in found if name.startswith("losses/")} - {"losses/total"}
    assert (
        own
        == {
            _returned: {"losses/fit"},
            _added: {"losses/net"},
            _by_keras: {"losses/loss"},
            _sublayer: {"losses/fit", "losses/mine"},
            _looked_at: {"losses/loss", "losses/regularization"},
            _read_twice: {"losses/fit"},
        }[report]
    )


def test_keras_itself_computes_these_numbers():
    """The same loss in plain Keras: `compute_loss` after the call, and a tape."""
    model = Net(_by_keras)
    x = tf.constant(ROWS)
    with tf.GradientTape() as tape:
        y = model({"x": x})
        loss = model.compute_loss(x=x, y=tf.zeros_like(y), y_pred=y)
    assert float(loss) == pytest.approx(MSE + 2.0)
    gradient = tape.gradient(loss, model.dense.kernel.value)
    np.testing.assert_allclose(gradient[:, 0], GRADIENT + 2.0, rtol=1e-6)


@pytest.mark.parametrize("count", [1, 2])
def test_an_added_loss_that_is_summed_counts_once_with_the_factor_of_the_sum(count, replicas):
    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="net")
            self.adds = Adds(name="adds")
            self.active = keras.layers.Activation("relu", activity_regularizer=L2)

        def call(self, batch, training=False):
            y = self.active(self.adds(batch["x"]))
            self.active(2.0 * y)
            return {"all": 0.5 * sum(self.losses)} if training else y

    x = np.float32([[1.0], [2.0], [3.0], [6.0]])
    train_step, found, _ = run(Model, rows(x, 4), strategy=replicas(count))
    # mean(x) + mean(x^2) + mean((2 x)^2), halved; the gradient in w is mean(x) + 10 mean(x^2).
    mean, square = 3.0, 12.5
    assert found["losses/total"] == found["losses/all"] == pytest.approx(0.5 * (mean + 5 * square))
    assert "losses/net/adds" not in found
    weight = train_step.model.adds.w.numpy()
    assert weight == pytest.approx(1 - 0.1 * 0.5 * (mean + 10 * square))


def test_losses_are_those_of_the_latest_call_outside_of_others():
    class Step(tfloss.TrainStep):
        def forward(self, batch):
            self.model(batch["x"])
            self.model(10.0 * batch["x"])
            return {"last": 2.0 * tf.add_n(self.model.losses)}

    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="net")
            self.adds = Adds(name="adds")

        def call(self, x):
            return self.adds(x)

    _, found, _ = run(Model, rows([[3.0]], 1), step=Step)
    assert found["losses/last"] == 60.0  # Keras has cleared the first call's
    assert found["losses/net/adds"] == 3.0  # but it is a loss of the forward pass
    assert found["losses/total"] == 63.0


def test_the_value_in_half_precision_has_the_dtype_of_the_call():
    def report(model, batch, y):
        assert y.dtype == tf.float16 and model.losses[0].dtype == tf.float16
        return tf.reduce_mean(y) + sum(model.losses)

    _, found, _ = run(lambda: Net(report), rows(ROWS, 4), precision="mixed_float16")
    assert found["losses/loss"] == pytest.approx(np.mean(Y) + 2.0)


def test_losses_read_in_a_branch_are_refused():
    def report(model, batch, y):
        return tf.cond(y[0, 0] > 0, lambda: sum(model.losses), lambda: tf.reduce_mean(y))

    with pytest.raises(LossError, match="`losses` of layer 'net' is computed inside a tf.cond"):
        run(lambda: Net(report), rows(ROWS, 4))


def test_a_regularizer_in_the_loss_of_another_group_is_refused():
    class Pair(keras.Model):
        def __init__(self):
            super().__init__(name="pair")
            self.a = keras.layers.Dense(1, name="a", kernel_regularizer=L2)
            self.b = keras.layers.Dense(1, name="b", kernel_regularizer=L2)

        def call(self, batch, training=False):
            a, b = self.a(batch["x"]), self.b(batch["x"])
            return {"a": tf.reduce_mean(a) + sum(self.losses), "b": tf.reduce_mean(b)}

    model = Pair()
    groups = {
        "a": (keras.optimizers.SGD(0.1), model.a),
        "b": (keras.optimizers.SGD(0.1), model.b),
    }
    step, iterator = make_step(lambda: model, rows(ROWS, 4), optimizer=lambda: groups)
    with pytest.raises(LossError, match="Loss 'a' contains the regularizer of 'pair/b/kernel'"):
        Engine(step).run(iterator, 1)
