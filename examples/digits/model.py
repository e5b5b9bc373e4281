"""A small conv net for 8x8 digits that owns its loss."""

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

import tfloss


class Classifier(keras.Model):
    """Classifies images of digits.

    A batch is `{"image": float32 [n, 8, 8, 1] in [0, 1], "label": int64 [n]}`. Inference needs no
    label and returns `{"probabilities": float32 [n, 10]}`.

    Args:
      width: The number of channels of the first block.
      dropout: The dropout rate before the last layer.
    """

    def __init__(self, width: int = 32, dropout: float = 0.3):
        super().__init__()
        blocks = [*_block(width), *_block(width), keras.layers.MaxPooling2D()]
        blocks += [*_block(2 * width), *_block(2 * width), keras.layers.GlobalAveragePooling2D()]
        self.net = keras.Sequential(
            [*blocks, keras.layers.Dropout(dropout), keras.layers.Dense(10)]
        )

    def call(self, batch: Mapping[str, tf.Tensor], training: bool = False) -> dict[str, tf.Tensor]:
        """Returns the loss in training, and predictions in inference."""
        logits = self.net(batch["image"], training=training)
        if training:
            tfloss.summary.scalar("accuracy", accuracy(batch["label"], logits))
            tfloss.summary.image("inputs", batch["image"], max_outputs=4)
            return {"cross_entropy": cross_entropy(batch["label"], logits)}
        return {"probabilities": tf.nn.softmax(logits)}

    def evaluation_metrics(self) -> dict[str, Any]:
        """Returns the metrics of an evaluation, by name."""
        accuracy = tfloss.metric(
            keras.metrics.SparseCategoricalAccuracy(),
            lambda batch, predictions: (batch["label"], predictions["probabilities"]),
        )
        return {"accuracy": accuracy}


def cross_entropy(label: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Computes the mean cross entropy of a batch, a scalar."""
    each = tf.nn.sparse_softmax_cross_entropy_with_logits(label, logits)
    return tf.reduce_mean(each)


def accuracy(label: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Computes the fraction of examples whose largest logit is the label's, a scalar."""
    return tf.reduce_mean(tf.cast(tf.argmax(logits, -1) == label, tf.float32))


def _block(filters: int) -> list[keras.Layer]:
    return [
        keras.layers.Conv2D(filters, 3, padding="same", use_bias=False),
        keras.layers.BatchNormalization(momentum=0.9),
        keras.layers.ReLU(),
    ]
