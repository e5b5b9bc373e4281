"""A model with a plain, a masked and a regularization loss; runs of it, and their comparison."""

import keras
import numpy as np
import tensorflow as tf

from tests.toys import make_step
from tfloss.engine.engine import Engine
from tfloss.forward.global_batch import global_mean

X = np.arange(1.0, 33.0, dtype=np.float32)


VALID = (np.arange(32) % 5 == 0).astype(np.float32)


def data(batch, **more):
    columns = {"x": X, "valid": VALID, **more}
    return tf.data.Dataset.from_tensor_slices(columns).batch(batch, drop_remainder=True).repeat()


class Net(keras.Model):
    def __init__(self):
        super().__init__(name="net")
        self.first = keras.layers.Dense(6, activation="tanh", name="first")
        self.drop = keras.layers.Dropout(0.0)
        self.last = keras.layers.Dense(2, name="last", kernel_regularizer="l2")

    def call(self, batch, training=False):
        z = self.last(self.drop(self.first(batch["x"][:, None] / 16.0), training=training))
        each = tf.reduce_mean((tf.cast(z, tf.float32) - 1.0) ** 2, -1)
        return {"mean": tf.reduce_mean(each), "masked": global_mean(each, batch["valid"])}


def trained(batch, strategy=None, steps=20, mode="graph", **options):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    train_step, iterator = make_step(Net, data(batch), strategy=strategy, **options)
    block = Engine(train_step, mode=mode).run(iterator, steps)
    state = {v.path: v.numpy() for v in train_step.model.weights}
    state |= {name: v.numpy() for name, v in train_step.extra_variables().items()}
    return state, dict(zip(block.names, block.rows().T, strict=True)), train_step


def assert_same(one, other, rtol=1e-6):
    for name, value in one[0].items():
        np.testing.assert_allclose(other[0][name], value, rtol, atol=rtol, err_msg=name)
    for name, column in one[1].items():
        np.testing.assert_allclose(other[1][name], column, 1e-5, atol=1e-6, err_msg=name)
