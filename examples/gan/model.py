"""A generative adversarial net that owns both of its losses and its penalty.

    latent ─▶ generator ─▶ image ─┐
                                  ├─▶ discriminator ─▶ logit ─▶ generator/*, discriminator/*
                      real image ─┘        └─▶ its gradient in real images ─▶ discriminator/r1

Goodfellow et al. 2014 (arXiv:1406.2661), with the non-saturating loss; R1 by Mescheder et al. 2018
(arXiv:1801.04406). Losses named after a group of variables train that group only.
"""

import keras
import numpy as np
import tensorflow as tf

import tfloss

layers = keras.layers


class Gan(keras.Model):
    """Draws pictures from latent vectors.

    A training batch is `{"image": float32 [n, 28, 28, 1] in [-1, 1]}`. In inference it takes
    `{"latent": [n, latent]}` and returns `{"image": [n, 28, 28, 1]}`.

    Args:
      latent: length of a latent vector.
      width: channels of the largest pictures.
      r1: weight of the penalty, gamma / 2 in the paper.
    """

    def __init__(self, latent: int = 64, width: int = 32, r1: float = 1.0):
        super().__init__(name="gan")
        self.latent, self.r1 = latent, r1
        self.generator = _generator(latent, width)
        self.discriminator = _discriminator(width)
        self.random = keras.random.SeedGenerator(seed=1)

    def call(self, batch, training=False):
        if not training:
            return {"image": self.generator(batch["latent"])}
        self.show()
        # Both at once, from the same pictures. `AlternatingStep` calls them one by one.
        fake = self.generator(self.draw(batch), training=True)
        return {
            "generator": self.fool(fake),
            "discriminator": self.judge(batch["image"], fake),
        }

    def fool(self, fake):
        """The generator wants its pictures to be taken for real ones."""
        return {"fool": tf.reduce_mean(tf.nn.softplus(-self.discriminator(fake, training=True)))}

    def judge(self, real, fake):
        """The discriminator wants to tell them apart, and to be flat at real ones."""
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

    def draw(self, batch):
        """Latent vectors, as many as there are pictures."""
        return keras.random.normal([tf.shape(batch["image"])[0], self.latent], seed=self.random)

    def show(self):
        """What the generator makes of the same 64 latent vectors, whenever summaries are due."""
        latent = tf.random.stateless_normal([64, self.latent], [1, 2])
        tfloss.summary.draw("samples", grid, self.generator(latent))


class AlternatingStep(tfloss.TrainStep):
    """First the discriminator; then the generator against the new discriminator."""

    def step(self, batch):
        gan = self.model
        judged = self.minimize(self.judge, batch, group="discriminator")
        fooled = self.minimize(
            lambda batch: gan.fool(gan.generator(gan.draw(batch), training=True)),
            batch,
            group="generator",
        )
        return {**judged, **fooled}

    def judge(self, batch):
        gan = self.model
        gan.show()
        return gan.judge(batch["image"], gan.generator(gan.draw(batch), training=True))


def grid(images: np.ndarray) -> np.ndarray:
    """64 pictures [64, h, w, c] in [-1, 1] as one, [1, 8 h, 8 w, c] in [0, 1]."""
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
