"""Outputs are no losses. tests/adapters/test_identity.py compares the training."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tfloss.adapters import outputs_ignored
from tfloss.errors import LossError


class _Energy(keras.Layer):
    def call(self, inputs):
        a, b = inputs
        self.add_loss(keras.ops.mean((a - b) ** 2))
        return a


def _model(adds=True):
    a, b = keras.Input([2], name="a"), keras.Input([2], name="b")
    scaled = keras.layers.Dense(2, kernel_initializer="identity", use_bias=False)(a)
    return keras.Model({"a": a, "b": b}, _Energy(name="energy")([scaled, b]) if adds else scaled)


def test_a_functional_model_with_added_losses_is_trained():
    x = np.float32([[1, 2], [3, 4]])
    data = tf.data.Dataset.from_tensor_slices({"a": x, "b": 0 * x}).batch(2)
    options = {"default_hooks": False, "jit": False}
    with pytest.raises(LossError, match="where a scalar loss|is not a scalar"):
        tfloss.Trainer(_model(), keras.optimizers.SGD(0.1), **options).train(data, 1)
    model = outputs_ignored(_model())
    result = tfloss.Trainer(model, keras.optimizers.SGD(0.0), **options).train(data, 1)
    assert result.losses == pytest.approx({"energy": 7.5, "total": 7.5})
    np.testing.assert_array_equal(model({"a": x, "b": x}), x)
    model = outputs_ignored(_model(adds=False))
    with pytest.raises(LossError, match="reported no loss"):
        tfloss.Trainer(model, keras.optimizers.SGD(0.1), **options).train(data, 1)
