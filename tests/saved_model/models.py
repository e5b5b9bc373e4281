"""Models to export, and what a loaded export returns."""

import keras
import numpy as np
import tensorflow as tf

import tfloss

IMAGE = {"image": tf.TensorSpec([None, 8, 8, 1])}


class Net(keras.Model):
    """A small conv net with layers in a list, a dict and an attribute, and a training branch."""

    def __init__(self, forward=None):
        super().__init__()
        self.blocks = [keras.layers.Conv2D(4, 3), {"norm": keras.layers.BatchNormalization()}]
        self.drop = keras.layers.Dropout(0.5)
        self.head = keras.layers.Dense(10)
        self.forward = forward

    def call(self, batch, training=False):
        x = self.blocks[0](batch["image"])
        x = self.blocks[1]["norm"](x, training=training)
        x = tf.reduce_mean(self.drop(tf.nn.relu(x), training=training), [1, 2])
        logits = self.head(x)
        if training:
            tfloss.summary.scalar("logit", tf.reduce_mean(logits))
            each = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits)
            return {"cross_entropy": tf.reduce_mean(each)}
        if self.forward is not None:
            return self.forward(batch, logits)
        return {"logits": logits, "probabilities": tf.nn.softmax(logits)}


def images(count=5, seed=0):
    return np.random.default_rng(seed).random((count, 8, 8, 1), np.float32)


def built(model=None):
    """A model that has trained a little, so that its statistics are not those it began with."""
    model = model or Net()
    batch = {"image": images(8), "label": np.arange(8)}

    @tf.function(autograph=False)
    def train():
        return model(batch, training=True)

    train()
    return model


class Plain(keras.Model):
    """Any function of the batch."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, batch, training=False):
        return self.function(batch)


def serve(path, signature="serving_default", /, **inputs):
    function = tf.saved_model.load(str(path)).signatures[signature]
    return {
        k: v.numpy() for k, v in function(**{k: tf.constant(v) for k, v in inputs.items()}).items()
    }


def graph_of(path, name="serving_default"):
    return tf.saved_model.load(str(path)).signatures[name].graph.as_graph_def()
