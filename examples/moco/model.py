"""MoCo: representations of images, learned without labels.

    query view ─▶ encoder ──────▶ projection ─▶ q ─┐
                     │ moving average               ├─▶ which key is q's own?
    key view ───▶ momentum encoder ──────────▶ k ─┤
                                                    └─▶ queue of earlier keys: the wrong answers

He et al. 2020 (arXiv:1911.05722), with the projection of Chen et al. 2020 (arXiv:2003.04297). No
layer mixes the examples of a batch, so no information leaks from a key to its query.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

import tfloss
from tfloss.detection import drawing

layers = keras.layers
_draw_views = functools.partial(drawing.draw_rows, ("query", "key"))


class Moco(keras.Model):
    """An encoder, trained to tell views of one image from views of others.

    A training batch is `{"query": float32 [n, 28, 28, 1], "key": the same}`. Inference takes
    `{"image": float32 [n, 28, 28, 1]}` and returns `{"features": [n, 4 * width]}`.

    Args:
      width: The number of channels of the first convolution.
      size: The length of a key.
      queue: The number of keys in the queue, a multiple of the global batch size.
      momentum: The momentum of the moving average in each step.
      temperature: The temperature of the softmax over keys.
    """

    def __init__(
        self,
        width: int = 32,
        size: int = 64,
        queue: int = 4096,
        momentum: float = 0.99,
        temperature: float = 0.07,
    ):
        super().__init__(name="moco")
        self.momentum, self.temperature = momentum, temperature
        self.encoder, self.projection = _encoder(width), _projection(4 * width, size)
        self.slow_encoder, self.slow_projection = _encoder(width), _projection(4 * width, size)
        for slow in (self.slow_encoder, self.slow_projection):
            slow.trainable = False
        self.queue = self.add_weight(
            shape=[queue, size], initializer=_directions, trainable=False, name="queue"
        )
        self.next = self.add_weight(
            shape=[], initializer="zeros", dtype="int32", trainable=False, name="next"
        )
        self.follow(momentum=0.0)

    def call(self, batch: Mapping[str, tf.Tensor], training: bool = False) -> dict[str, tf.Tensor]:
        """Returns the loss in training, and features in inference."""
        if not training:
            return {"features": self.encoder(batch["image"])}
        self.follow(self.momentum)
        q = tf.math.l2_normalize(self.projection(self.encoder(batch["query"])), -1)
        k = self.slow_projection(self.slow_encoder(batch["key"]))
        k = tf.stop_gradient(tf.math.l2_normalize(k, -1))
        loss, right = self.contrast(q, k)
        self.enqueue(tfloss.cross_replica_concat(k))
        tfloss.summary.scalar("right", right)
        tfloss.summary.draw("views", _draw_views, batch["query"][:6], batch["key"][:6])
        return {"contrast": loss}

    def contrast(self, q: tf.Tensor, k: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Computes InfoNCE: the cross entropy of q's own key among the queue's keys (eq. 1).

        Args:
          q: Queries [n, size] of length 1.
          k: Their keys [n, size] of length 1.

        Returns:
          The loss, and the fraction of queries whose own key is the nearest; both are scalars.
        """
        own = tf.reduce_sum(q * k, -1, keepdims=True)
        logits = tf.concat([own, q @ tf.transpose(self.queue)], 1) / self.temperature
        first = tf.zeros([tf.shape(q)[0]], tf.int32)
        each = tf.nn.sparse_softmax_cross_entropy_with_logits(first, logits)
        right = tf.cast(tf.argmax(logits, -1, tf.int32) == first, tf.float32)
        return tf.reduce_mean(each), tf.reduce_mean(right)

    def enqueue(self, keys: tf.Tensor) -> None:
        """Replaces the oldest keys of the queue by those of all replicas."""
        places = (self.next + tf.range(tf.shape(keys)[0])) % self.queue.shape[0]
        self.queue.assign(tf.tensor_scatter_nd_update(self.queue, places[:, tf.newaxis], keys))
        self.next.assign((self.next + tf.shape(keys)[0]) % self.queue.shape[0])

    def follow(self, momentum: float) -> None:
        """Updates the momentum encoder, a moving average of the encoder (eq. 2)."""
        for fast, slow in (
            (self.encoder, self.slow_encoder),
            (self.projection, self.slow_projection),
        ):
            for new, old in zip(fast.weights, slow.weights, strict=True):
                old.assign(momentum * old + (1.0 - momentum) * new)


def _encoder(width: int) -> keras.Model:
    """Images [n, 28, 28, 1] -> features [n, 4 * width]."""
    blocks: list[Any] = [keras.Input([28, 28, 1])]
    for filters in (width, 2 * width, 4 * width):
        blocks += [
            layers.Conv2D(filters, 3, strides=2, padding="same"),
            layers.GroupNormalization(8),
            layers.ReLU(),
        ]
    return keras.Sequential([*blocks, layers.GlobalAveragePooling2D()])


def _projection(features: int, size: int) -> keras.Model:
    return keras.Sequential(
        [keras.Input([features]), layers.Dense(features, "relu"), layers.Dense(size)]
    )


def _directions(shape: Sequence[int], dtype: Any) -> tf.Tensor:
    return tf.math.l2_normalize(tf.random.stateless_normal(shape, [1, 2], dtype=dtype), -1)
