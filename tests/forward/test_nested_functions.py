"""A `tf.function` in a model computes what its code computes without it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.toys import make_step
from tfloss.engine.engine import Engine
from tfloss.forward.context import current_step


class _Nested(keras.Model):
    """Not built. Its features come from a method that may be a `tf.function`."""

    def __init__(self, nested):
        super().__init__(name="net")
        self.first = keras.layers.Dense(3, name="first")
        self.norm = keras.layers.BatchNormalization(momentum=0.5, name="norm")
        self.last = keras.layers.Dense(1, name="last")
        self.features = tf.function(self._features) if nested else self._features

    def _features(self, x, training):
        scale = 1.0 + tf.cast(current_step(), tf.float32)
        return self.norm(self.first(x) * scale, training=training)

    def call(self, batch, training=False):
        z = self.last(self.features(batch["x"], training))
        loss = {"loss": tfloss.global_mean((z - 1.0) ** 2)}
        return loss if training else {"z": z}


@pytest.mark.promise(53)
@pytest.mark.parametrize(
    ("mode", "count", "options"),
    [
        ("graph", 1, {}),
        ("graph", 2, {}),
        ("graph", 1, {"accumulate": 2}),
        pytest.param("step", 1, {}, marks=pytest.mark.slow),
        pytest.param("step", 2, {}, marks=pytest.mark.slow),
    ],
)
def test_a_nested_function_trains_like_its_code_without_it(mode, count, options, replicas):
    """Also after a trace that built the model, one that counted, and one that recorded."""
    x = np.random.RandomState(0).randn(8, 4).astype(np.float32)
    data = tf.data.Dataset.from_tensor_slices({"x": x}).batch(4).repeat()

    def trained(nested):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(1)
        step, iterator = make_step(lambda: _Nested(nested), data, replicas(count), **options)
        before = [v.numpy().copy() for v in step.model.variables]
        engine = Engine(step, mode=mode)
        engine.run(iterator, 1, recording=True)
        engine.run(iterator, 2)
        return before, [v.numpy() for v in step.model.variables]

    before, plain = trained(nested=False)
    before_nested, nested = trained(nested=True)
    for a, b in zip(before, before_nested, strict=True):
        np.testing.assert_array_equal(a, b)
    for old, a, b in zip(before, plain, nested, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
        assert a.shape == (3,) or not np.array_equal(old, b)  # biases before a norm stay 0
    assert np.abs(nested[4]).max() > 1e-3, "the moving mean was not updated"
