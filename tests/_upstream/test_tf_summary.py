"""`tf.summary` still behaves as `tfloss._upstream.tf_summary` expects."""

import keras
import pytest
import tensorflow as tf

from tfloss import _upstream

pytestmark = pytest.mark.upstream


def test_every_kind_of_tf_summary_ends_in_write():
    seen = []

    class Layer(keras.layers.Layer):
        def call(self, x):
            tf.summary.scalar("scalar", 1.0)
            tf.summary.histogram("histogram", x)
            tf.summary.image("image", tf.zeros([1, 2, 2, 1]))
            tf.summary.text("text", "hello")
            tf.summary.audio("audio", tf.zeros([1, 4, 1]), 100)
            return x

    def observe(tag, tensor, metadata):
        seen.append((tag, metadata.plugin_data.plugin_name))
        return True

    with _upstream.intercept_tf_summary(observe):
        tf.function(Layer(name="layer"))(tf.zeros([1]))
    assert seen == [
        ("layer/scalar", "scalars"),
        ("layer/histogram", "histograms"),
        ("layer/image", "images"),
        ("layer/text", "text"),
        ("layer/audio", "audio"),
    ]
