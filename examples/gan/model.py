"""A generative adversarial network that owns both of its losses and its penalty.

    latent ─▶ generator ─▶ image ─┐
                                  ├─▶ discriminator ─▶ logit ─▶ generator/*, discriminator/*
                      real image ─┘        └─▶ gradient at real images ─▶ discriminator/r1

Goodfellow et al. 2014 (arXiv:1406.2661), with the non-saturating loss; R1 by Mescheder et al. 2018
(arXiv:1801.04406). A loss whose name starts with the name of a group trains that group only.
"""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfloss

layers = keras.layers


class Gan(keras.Model):
    """Generates images from latent vectors.

    A training batch is `{"image": float32 [n, 28, 28, 1] in [-1, 1]}`. Inference takes
    `{"latent": float32 [n, latent]}` and returns `{"image": [n, 28, 28, 1]}`.

    Args:
      latent: The length of a latent vector.
      width: The number of channels at the highest resolution.
      r1: The weight of the R1 penalty, gamma / 2 in the paper.
    """

    def __init__(self, latent: int = 64, width: int = 32, r1: float = 1.0):
        super().__init__(name="gan")
        self.latent, self.r1 = latent, r1
        self.generator = _generator(latent, width)
        self.discriminator = _discriminator(width)
        self.random = keras.random.SeedGenerator(seed=1)

    def call(self, batch: Mapping[str, tf.Tensor], training: bool = False) -> dict[str, Any]:
        """Returns the losses of both groups in training, and images in inference."""
        if not training:
            return {"image": self.generator(batch["latent"])}
        self.show()
        # Both losses use the same fake images. `AlternatingStep` computes them in turn.
        fake = self.generator(self.draw(batch), training=True)
        return {
            "generator": self.fool(fake),
            "discriminator": self.judge(batch["image"], fake),
        }

    def fool(self, fake: tf.Tensor) -> dict[str, tf.Tensor]:
        """Computes the generator's loss: the discriminator should take fake images for real."""
        return {"fool": tf.reduce_mean(tf.nn.softplus(-self.discriminator(fake, training=True)))}

    def judge(self, real: tf.Tensor, fake: tf.Tensor) -> dict[str, tf.Tensor]:
        """Computes the discriminator's losses: tell real from fake, with R1 at real images."""
        with tf.GradientTape() as tape:
            tape.watch(real)
            logits = self.discriminator(real, training=True)
        slope = tape.gradient(logits, real)
        fakes = self.discriminator(tf.stop_gradient(fake), training=True)
        tfloss.summary.scalar("logits/real", tf.reduce_mean(logits))
        tfloss.summary.scalar("logits/fake", tf.reduce_mean(fakes))
        return {
            "real": tf.reduce_mean(tf.nn.softplus(-logits)),
            "fake": tf.reduce_mean(tf.nn.softplus(fakes)),
            "r1": self.r1 * tf.reduce_mean(tf.reduce_sum(slope**2, [1, 2, 3])),
        }

    def draw(self, batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Draws a latent vector for each image of the batch."""
        return keras.random.normal([tf.shape(batch["image"])[0], self.latent], seed=self.random)

    def show(self) -> None:
        """Records images of 64 fixed latent vectors, at steps that record summaries."""
        latent = tf.random.stateless_normal([64, self.latent], [1, 2])
        tfloss.summary.draw("samples", grid, self.generator(latent))


class AlternatingStep(tfloss.TrainStep):
    """Updates the discriminator first, and then the generator against the new discriminator."""

    def step(self, batch: Any) -> dict[str, tf.Tensor]:
        """Runs both updates. Cross-replica, traced."""
        gan = self.model
        judged = self.minimize(self.judge, batch, group="discriminator")
        fooled = self.minimize(
            lambda batch: gan.fool(gan.generator(gan.draw(batch), training=True)),
            batch,
            group="generator",
        )
        return {**judged, **fooled}

    def judge(self, batch: Any) -> dict[str, tf.Tensor]:
        """Computes the discriminator's losses of a batch. Replica, traced."""
        gan = self.model
        gan.show()
        return gan.judge(batch["image"], gan.generator(gan.draw(batch), training=True))


def grid(images: np.ndarray) -> np.ndarray:
    """Arranges images in a square grid.

    Args:
      images: Images [n^2, h, w, c] in [-1, 1].

    Returns:
      One image [1, n h, n w, c] in [0, 1].
    """
    n, height, width, channels = images.shape
    side = int(n**0.5)
    rows = images.reshape(side, side, height, width, channels).transpose(0, 2, 1, 3, 4)
    return np.clip(rows.reshape(1, side * height, side * width, channels) / 2 + 0.5, 0, 1)


def _generator(latent: int, width: int) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input([latent]),
            layers.Dense(7 * 7 * 4 * width),
            layers.Reshape([7, 7, 4 * width]),
            layers.LeakyReLU(0.2),
            layers.Conv2DTranspose(2 * width, 4, 2, padding="same"),
            layers.GroupNormalization(8),
            layers.LeakyReLU(0.2),
            layers.Conv2DTranspose(width, 4, 2, padding="same"),
            layers.GroupNormalization(8),
            layers.LeakyReLU(0.2),
            layers.Conv2D(1, 3, padding="same", activation="tanh"),
        ],
        name="generator",
    )


def _discriminator(width: int) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input([28, 28, 1]),
            layers.Conv2D(width, 4, 2, padding="same"),
            layers.LeakyReLU(0.2),
            layers.Conv2D(2 * width, 4, 2, padding="same"),
            layers.LeakyReLU(0.2),
            layers.Flatten(),
            layers.Dense(4 * width),
            layers.LeakyReLU(0.2),
            layers.Dense(1),
        ],
        name="discriminator",
    )
