"""fastai's loss_func(pred, *targets). tests/adapters/test_identity.py compares the training."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.toys import Line
from tfloss.adapters import fastai_style
from tfloss.errors import DataError


class _Product(keras.Model):
    """w a b, with w = 1 at the start."""

    def __init__(self):
        super().__init__(name="product")
        self.w = self.add_weight(name="w", shape=(), initializer="ones")

    def call(self, x, training=False):
        a, b = x
        return self.w * a * b


def _loss(pred, target, weight):
    return {"error": tf.reduce_mean(weight * (pred - target) ** 2), "size": tf.reduce_mean(pred)}


@pytest.mark.parametrize("count", [1, 2])
def test_targets_follow_the_inputs(count, replicas):
    a, b = np.float32([1, 2, 3, 4]), np.float32([2, 2, 2, 2])
    target, weight = np.float32([0, 0, 0, 8]), np.float32([1, 1, 0, 1])
    data = tf.data.Dataset.from_tensor_slices((a, b, target, weight)).batch(4)
    with (strategy := replicas(count)).scope():
        model = fastai_style(_Product(), _loss, n_inputs=2)
        optimizer = keras.optimizers.SGD(0.01)
    options = {"default_hooks": False, "jit": False, "strategy": strategy}
    trainer = tfloss.Trainer(model, optimizer, **options)
    result = trainer.train(data, steps=1)
    assert result.losses["error"] == pytest.approx((4 + 16 + 0 + 0) / 4)
    assert result.losses["size"] == pytest.approx(5)
    # d error / dw = 2 (2 * 2 + 4 * 4) / 4 = 10, d size / dw = 5
    assert float(model.predictor.w.numpy()) == pytest.approx(1 - 0.01 * 15)
    # Inference takes batches with and without targets.
    np.testing.assert_array_equal(model((a, b)), model((a, b, target, weight)))


def test_what_does_not_fit_is_refused():
    for loss in (keras.losses.MeanSquaredError(), keras.losses.mean_squared_error):
        with pytest.raises(ValueError, match="loss of Keras, which takes.*adapters.supervised"):
            fastai_style(Line(), loss)
    with pytest.raises(ValueError, match="n_inputs must be at least 1, got 0"):
        fastai_style(Line(), _loss, n_inputs=0)
    with pytest.raises(DataError, match=r"n_inputs=2\) needs .* at least 2 parts, got 1"):
        fastai_style(_Product(), _loss, n_inputs=2)(tf.ones([3]))
