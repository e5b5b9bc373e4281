"""The Fréchet distance between generated and real images.

It is the FID (Heusel et al. 2017, arXiv:1706.08500) with another feature extractor: a small
classifier of Fashion-MNIST, trained here once, in place of an Inception net that would have to be
downloaded. Compare only scores of the same classifier.
"""

from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

layers = keras.layers


class Frechet:
    """A metric: |m - m'|^2 + trace(C + C' - 2 (C C')^(1/2)), with means m and covariances C.

    Both the batch and the predictions have `"image"`, [n, 28, 28, 1] in [-1, 1].

    Args:
      features: The feature extractor: images to features [n, k].
    """

    mode = "min"

    def __init__(self, features: keras.Model):
        self.features = tf.function(features)
        self.reset()

    def reset(self) -> None:
        """Forgets all images."""
        self._real: list[np.ndarray] = []
        self._drawn: list[np.ndarray] = []

    def update(
        self, batch: Mapping[str, np.ndarray], predictions: Mapping[str, np.ndarray]
    ) -> None:
        """Adds the images of a batch."""
        self._real.append(self.features(batch["image"]).numpy())
        self._drawn.append(self.features(predictions["image"]).numpy())

    def result(self) -> float:
        """Computes the distance."""
        return frechet(np.concatenate(self._real), np.concatenate(self._drawn))


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """Computes the Fréchet distance between normal distributions fitted to two samples.

    Args:
      first: Features [n, k].
      second: Features [m, k].

    Returns:
      The squared distance.
    """
    means = first.mean(0), second.mean(0)
    a, b = (np.cov(each.astype(np.float64), rowvar=False) for each in (first, second))
    # The trace of (AB)^(1/2) is the sum of the square roots of the eigenvalues of AB, and AB has
    # the eigenvalues of the symmetric matrix A^(1/2) B A^(1/2).
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    both = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ b @ root), 0)).sum()
    return float(((means[0] - means[1]) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * both)


def classifier(path: Path, data_dir: str, epochs: int = 2) -> keras.Model:
    """Loads the feature extractor, or trains it and saves it.

    Args:
      path: The file of the classifier.
      data_dir: The directory of TFDS.
      epochs: The number of training epochs.

    Returns:
      A model of images [n, 28, 28, 1] in [-1, 1] that returns features [n, 32].
    """
    if not path.exists():
        train = tfds.load(
            "fashion_mnist", split="train[:90%]", data_dir=data_dir, as_supervised=True
        )
        train = train.map(lambda x, y: (tf.cast(x, tf.float32) / 127.5 - 1.0, y))
        net = keras.Sequential(
            [
                keras.Input([28, 28, 1]),
                layers.Conv2D(16, 3, 2, activation="relu"),
                layers.Conv2D(32, 3, 2, activation="relu"),
                layers.Flatten(),
                layers.Dense(32, activation="relu", name="features"),
                layers.Dense(10, activation="softmax"),
            ]
        )
        net.compile("adam", "sparse_categorical_crossentropy")
        net.fit(train.cache().shuffle(10_000, seed=0).batch(128), epochs=epochs, verbose=0)
        net.save(path)
    net = keras.models.load_model(path)
    return keras.Model(net.inputs, net.get_layer("features").output)
