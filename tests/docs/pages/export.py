import keras
import tensorflow as tf

import tfloss

__all__ = ["tfloss"]


class Digits(keras.Model):
    def __init__(self):
        super().__init__()
        self.net = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])

    def call(self, batch, training=False):
        return {"probabilities": tf.nn.softmax(self.net(batch["image"]))}


class Lengths(keras.Model):
    def call(self, batch, training=False):
        return {"lengths": batch["tokens"].row_lengths()}


model, text_model = Digits(), Lengths()


def check(page):
    assert page["probabilities"].shape == (5, 10)
    png = tf.saved_model.load("runs/digits/export").signatures["png"]
    assert png(png=tf.constant([page["png"]]))["probabilities"].shape == (1, 10)
