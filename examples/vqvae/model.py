"""An autoencoder with a bottleneck that owns its loss: discrete codes, or a Gaussian.

    image ─▶ encoder ─▶ z ─▶ bottleneck ─▶ z' ─▶ decoder ─▶ reconstruction
                              │
                              ├─ Quantizer: the nearest of k codes; commitment
                              └─ Gaussian: a sample; annealed KL divergence

VQ-VAE: van den Oord et al. 2017 (arXiv:1711.00937). Beta-VAE: Higgins et al. 2017.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

import tfloss
from tfloss.detection import drawing

layers = keras.layers
_draw_pairs = functools.partial(drawing.draw_rows, ("image", "found"))


class Autoencoder(keras.Model):
    """Reconstructs images through a bottleneck.

    A batch is `{"image": float32 [n, 28, 28, 1] in [0, 1]}`. In training the model returns the loss
    of the reconstruction, and its bottleneck adds another one. Inference returns
    `{"reconstruction": [n, 28, 28, 1]}` and, with a `Quantizer`, `{"codes": int32 [n, 7, 7]}`.

    Args:
      bottleneck: The bottleneck, a `Quantizer` or a `Gaussian`.
      width: The number of channels at the highest resolution.
    """

    def __init__(self, bottleneck: keras.Layer, width: int = 32):
        super().__init__(name="autoencoder")
        self.bottleneck = bottleneck
        self.encoder = keras.Sequential(
            [
                layers.Conv2D(width, 4, 2, padding="same", activation="relu"),
                layers.Conv2D(2 * width, 4, 2, padding="same", activation="relu"),
                layers.Conv2D(2 * width, 3, padding="same", activation="relu"),
                layers.Conv2D(bottleneck.channels, 1),
            ]
        )
        self.decoder = keras.Sequential(
            [
                layers.Conv2D(2 * width, 3, padding="same", activation="relu"),
                layers.Conv2DTranspose(2 * width, 4, 2, padding="same", activation="relu"),
                layers.Conv2DTranspose(width, 4, 2, padding="same", activation="relu"),
                layers.Conv2D(1, 3, padding="same"),
            ]
        )

    def call(self, batch: Mapping[str, tf.Tensor], training: bool = False) -> dict[str, tf.Tensor]:
        """Returns the reconstruction loss in training, and predictions in inference."""
        image = batch["image"]
        z, extra = self.bottleneck(self.encoder(image), training=training)
        found = self.decoder(z)
        if not training:
            return {"reconstruction": found, **extra}
        tfloss.summary.draw("reconstructed", _draw_pairs, image[:8], found[:8])
        return {"reconstruction": tf.reduce_mean((found - image) ** 2)}

    def evaluation_metrics(self) -> dict[str, Any]:
        """Returns the metrics of an evaluation, by name."""
        error = tfloss.metric(
            keras.metrics.MeanSquaredError(),
            lambda batch, predictions: (batch["image"], predictions["reconstruction"]),
        )
        return {"squared_error": error}


class Quantizer(layers.Layer):
    """Replaces each vector by the nearest of k codes.

    `[n, h, w, channels] -> [n, h, w, channels]`, and `{"codes": int32 [n, h, w]}`. A code is the
    moving average of the vectors that it was nearest to.

    Args:
      codes: The number of codes, k.
      channels: The length of a code.
      decay: The decay of the moving averages, over global batches (appendix A.1).
      commitment: The weight of the encoder's distance to its codes (beta, eq. 3).
      revive: The smallest moving average of the number of vectors per batch. A code with fewer is
        moved to one of the vectors (Jukebox, Dhariwal et al. 2020, arXiv:2005.00341).
    """

    def __init__(
        self,
        codes: int = 128,
        channels: int = 16,
        decay: float = 0.95,
        commitment: float = 0.25,
        revive: float = 0.5,
    ):
        super().__init__(name="quantizer")
        self.codes, self.channels = codes, channels
        self.decay, self.commitment, self.revive = decay, commitment, revive

    def build(self, shape: Sequence[int | None]) -> None:
        """Creates the codebook."""

        def state(name: str, shape: list[int], initializer: Any) -> keras.Variable:
            return self.add_weight(shape=shape, initializer=initializer, trainable=False, name=name)

        spread = keras.initializers.RandomNormal(stddev=0.5, seed=1)
        self.book = state("book", [self.codes, self.channels], spread)
        self.counts = state("counts", [self.codes], "ones")
        self.sums = state("sums", [self.codes, self.channels], "zeros")

    def call(self, z: tf.Tensor, training: bool = False) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns the codes' vectors, and their indices by name."""
        flat = tf.reshape(z, [-1, self.channels])
        distance = tf.reduce_sum(self.book**2, 1) - 2.0 * flat @ tf.transpose(self.book)
        nearest = tf.argmin(distance, 1, tf.int32)  # |z|^2 is the same for all codes
        chosen = tf.gather(tf.convert_to_tensor(self.book), nearest)
        if training:
            away = tf.reduce_mean((flat - tf.stop_gradient(chosen)) ** 2)
            tfloss.add_loss(self, commitment=self.commitment * away)
            self.learn(tf.stop_gradient(flat), nearest)
        # The decoder's gradient passes straight through to the encoder (section 3.2).
        straight = flat + tf.stop_gradient(chosen - flat)
        codes = tf.reshape(nearest, tf.shape(z)[:-1])
        return tf.reshape(straight, tf.shape(z)), {"codes": codes}

    def learn(self, flat: tf.Tensor, nearest: tf.Tensor) -> None:
        """Updates the codes' moving averages over all replicas (eq. 6 to 8).

        Args:
          flat: The vectors of this replica [m, channels].
          nearest: The index of the nearest code of each vector, int32 [m].
        """
        flat = tfloss.cross_replica_concat(flat)
        whose = tf.one_hot(tfloss.cross_replica_concat(nearest), self.codes)
        part = tf.reduce_mean(whose, 0)
        perplexity = tf.exp(-tf.reduce_sum(part * tf.math.log(part + 1e-10)))
        tfloss.summary.scalar("perplexity", perplexity)

        counts = self.decay * self.counts + (1 - self.decay) * tf.reduce_sum(whose, 0)
        sums = self.decay * self.sums + (1 - self.decay) * tf.transpose(whose) @ flat
        # Equally spaced vectors, others in each step.
        offset = tf.cast(tfloss.current_step() % 997, tf.int32)
        places = (tf.range(self.codes) * 7919 + offset) % tf.shape(flat)[0]
        dead = (counts < self.revive)[:, tf.newaxis]
        self.counts.assign(tf.where(dead[:, 0], 1.0, counts))
        self.sums.assign(tf.where(dead, tf.gather(flat, places), sums))
        self.book.assign(self.sums / self.counts[:, tf.newaxis])


class Gaussian(layers.Layer):
    """Samples from a normal distribution, with an annealed KL divergence from the standard one.

    `[n, h, w, 2 * size] -> [n, h, w, size]`: the input has means and log-variances. Inference uses
    the means.

    Args:
      size: The number of latent variables at each position.
      beta: The final weight of the divergence per pixel of the image.
      anneal: The number of steps in which the weight grows linearly from 0 to `beta`.
    """

    def __init__(self, size: int = 4, beta: float = 0.01, anneal: int = 1_000):
        super().__init__(name="gaussian")
        self.channels, self.beta, self.anneal = 2 * size, beta, anneal
        self.random = keras.random.SeedGenerator(seed=1)

    def call(self, z: tf.Tensor, training: bool = False) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns a sample in training and the mean in inference, and no further predictions."""
        mean, log_variance = tf.split(z, 2, axis=-1)
        if not training:
            return mean, {}
        each = (mean**2 + tf.exp(log_variance) - 1.0 - log_variance) / 2
        divergence = tf.reduce_mean(tf.reduce_sum(each, [1, 2, 3]))
        grown = tf.minimum(tf.cast(tfloss.current_step(), tf.float32) / self.anneal, 1.0)
        tfloss.add_loss(self, divergence=self.beta * grown * divergence / 28**2)
        tfloss.summary.scalar("bits", divergence / math.log(2))
        noise = keras.random.normal(tf.shape(mean), seed=self.random)
        return mean + tf.exp(log_variance / 2) * noise, {}
