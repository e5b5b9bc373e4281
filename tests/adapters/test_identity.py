"""A trainer that takes a loss function can do nothing that one of models with losses can't.

    trainer_good == partial(trainer_bad, loss_func=identity)

Each adapter that takes a loss, given the identity, trains a model that owns its losses as it trains
alone, bit for bit.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tfloss import adapters

_RANDOM = np.random.RandomState(0)
_DATA = tf.data.Dataset.from_tensor_slices(
    {
        "x": _RANDOM.randn(32, 5).astype(np.float32),
        "y": _RANDOM.randn(32, 2).astype(np.float32),
    }
).batch(8)


@keras.saving.register_keras_serializable(package="tests")
class Good(keras.Model):
    """A model that owns its losses: returned ones, an added one and a regularizer."""

    def __init__(self, **options):
        super().__init__(**options)
        self.hidden = keras.layers.Dense(8, activation="relu", kernel_regularizer="l2")
        self.norm, self.drop = keras.layers.BatchNormalization(), keras.layers.Dropout(0.3)
        self.head = keras.layers.Dense(2)

    def call(self, batch, training=False):
        h = self.drop(self.norm(self.hidden(batch["x"])))
        y = self.head(h)
        if not training:
            return y
        self.add_loss(0.1 * tf.reduce_mean(tf.square(h)))
        errors = tf.abs(y - batch["y"])
        return {"square": tf.reduce_mean(errors**2), "abs": tf.reduce_mean(errors)}


class _Task(keras.Layer):
    """A task of Lingvo whose ComputeLoss is the identity."""

    def __init__(self, model):
        super().__init__(name="task")
        self.model = model

    def ComputePredictions(self, theta, batch):  # noqa: N802 - Lingvo's name
        return self.model(batch, training=True)

    def ComputeLoss(self, theta, predictions, batch):  # noqa: N802
        return {"loss": (predictions["square"] + predictions["abs"], 8.0)}, {}


class _Added(keras.Model):
    """The same losses, all of them added."""

    def __init__(self, model):
        super().__init__(name="added")
        self.model = model

    def call(self, batch, training=False):
        found = self.model(batch, training=training)
        if training:
            for value in found.values():
                self.add_loss(value)
        return batch["x"]


def _trained(wrap):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(5)
    model = Good()
    options = {"default_hooks": False, "jit": False, "fused_adam": False}
    trainer = tfloss.Trainer(wrap(model), keras.optimizers.Adam(0.01), **options)
    result = trainer.train(_DATA, steps=4)
    return [v.numpy() for v in model.variables], result.losses


@pytest.fixture(scope="module")
def good():
    return _trained(lambda model: model)


@pytest.mark.parametrize(
    "bad",
    [
        lambda model: adapters.supervised(model, lambda outputs, batch: outputs),
        lambda model: adapters.fastai_style(model, lambda pred, *targets: pred),
        lambda model: adapters.lingvo_style(_Task(model)),
        lambda model: adapters.outputs_ignored(_Added(model)),
    ],
    ids=["supervised", "fastai_style", "lingvo_style", "outputs_ignored"],
)
def test_with_the_identity_as_its_loss_a_model_trains_as_it_does_alone(bad, good):
    weights, losses = _trained(bad)
    for one, other in zip(good[0], weights, strict=True):
        np.testing.assert_array_equal(one, other)
    assert losses["total"] == good[1]["total"]


def test_fit_of_the_model_for_keras_trains_as_it_does_alone(good):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(5)
    net = adapters.to_keras(Good())
    net.compile(keras.optimizers.Adam(0.01), jit_compile=False)
    net.fit(_DATA, verbose=0)
    for one, other in zip(good[0], net.model.variables, strict=True):
        np.testing.assert_array_equal(one, other.numpy())
