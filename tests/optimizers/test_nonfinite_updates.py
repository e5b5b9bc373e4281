"""Which optimizers carry a gradient that is not finite on to the weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.toys import Line, rows
from tfloss.errors import NonFiniteLossError
from tfloss.optimizers.nonfinite_updates import _CARRY_ON, weights_tell


@pytest.mark.parametrize("optimizer", sorted(_CARRY_ON, key=lambda one: one.__name__))
@pytest.mark.parametrize("options", [{}, {"clipnorm": 1.0}, {"global_clipnorm": 1.0}], ids=str)
def test_a_bad_gradient_is_in_the_weights_after_one_update_and_stays(optimizer, options):
    for bad in (np.nan, np.inf, -np.inf):
        for before in (0, 2):  # good updates, whose state may hide a bad one
            weights = [keras.Variable(np.ones([2, 3]), name=name) for name in "ab"]
            update = optimizer(0.1, **options)
            update.build(weights)
            good = np.full([2, 3], 0.5, np.float32)
            broken = good.copy()
            broken[1, 2] = bad
            for gradient in [good] * before + [broken] + [good] * 3:
                update.apply([tf.constant(gradient), tf.constant(good)])
                if gradient is broken:
                    assert not np.isfinite(weights[0].numpy()).all(), (bad, before)
            assert not np.isfinite(weights[0].numpy()).all(), (bad, before)


def test_a_sign_a_clip_and_a_constraint_hide_it():
    group = tfloss.Group
    plain = [keras.Variable([1.0], name="w")]
    assert weights_tell([group(keras.optimizers.SGD(0.1))], plain)
    assert not weights_tell([group(keras.optimizers.Lion(0.1))], plain)
    assert not weights_tell([group(keras.optimizers.SGD(0.1, clipvalue=1.0))], plain)
    both = [group(keras.optimizers.SGD(0.1)), group(keras.optimizers.Lion(0.1))]
    assert not weights_tell(both, plain)

    class Own(keras.optimizers.SGD):
        """It may do anything."""

    assert not weights_tell([group(Own(0.1))], plain)
    layer = keras.layers.Dense(1, kernel_constraint=keras.constraints.NonNeg())
    layer.build([None, 1])
    assert not weights_tell([group(keras.optimizers.SGD(0.1))], layer.trainable_weights)


OPTIMIZERS = {
    "weights": lambda: keras.optimizers.Adam(0.1),
    "sign": lambda: keras.optimizers.Lion(0.1),
    "clip": lambda: keras.optimizers.SGD(0.1, clipvalue=1.0),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("bad_step", [1, 2, 6, 8])
def test_the_loop_stops_before_the_bad_update_with_the_weights_of_the_graph(name, bad_step):
    """The gradient of where(x > 0, log(w x), 0) is NaN at x = 0, and the loss is not."""

    def report(model, batch, y):
        return {"log": tf.reduce_mean(tf.where(batch["x"] > 0, tf.math.log(y), 0.0))}

    values = np.arange(1.0, 9.0)
    values[bad_step - 1] = 0.0
    found = {}
    for jit in (False, "loop"):
        model = Line(report)
        hooks = [tfloss.hooks.NaNGuard()]
        trainer = tfloss.Trainer(
            model, OPTIMIZERS[name](), jit=jit, log_every=100, default_hooks=False, hooks=hooks
        )
        with pytest.raises(NonFiniteLossError, match=rf"(?s)step {bad_step}\b.*line/w"):
            trainer.train(rows(values, 1), 8)
        assert int(trainer.optimizer.iterations) == bad_step - 1
        found[jit] = float(model.w)
    assert np.isfinite(found[False])
    np.testing.assert_allclose(found["loop"], found[False], rtol=1e-6)


def test_weights_that_are_infinite_on_purpose_leave_the_gradients_to_be_checked():
    """A trainable mask of logits: minus infinity stays so, and training goes on."""

    class Masked(keras.Model):
        def __init__(self):
            super().__init__(name="masked")
            self.w = self.add_weight(name="w", shape=(), initializer="ones")
            start = keras.initializers.Constant(-np.inf)
            self.mask = self.add_weight(name="mask", shape=(), initializer=start)

        def call(self, batch, training=False):
            share = tf.nn.softmax(tf.stack([1.0 * self.w, 1.0 * self.mask]))
            return {"loss": tf.reduce_mean((self.w * batch["x"]) ** 2) + share[1]}

    model = Masked()
    trainer = tfloss.Trainer(
        model, keras.optimizers.SGD(0.1), jit="loop", hooks=[tfloss.hooks.NaNGuard()]
    )
    trainer.train(rows([1.0, 1.0], 1), 3)
    np.testing.assert_allclose(float(model.w), 0.8**3, rtol=1e-6)
    assert float(model.mask) == -np.inf
