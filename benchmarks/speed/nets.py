"""The nets and the arrays of the workloads, for every backend of Keras.

This module doesn't import TensorFlow, so that Keras on JAX starts without it.
"""

from collections.abc import Callable

import keras
import numpy as np

layers = keras.layers
Arrays = dict[str, np.ndarray]
HEADS = 50


def mlp() -> keras.Model:
    """Makes an MLP 784-128-10."""
    return keras.Sequential(
        [keras.Input([784]), layers.Dense(128, activation="relu"), layers.Dense(10)]
    )


def small(blocks: int = 40) -> keras.Model:
    """Makes a deep net of small layers."""
    net = keras.Sequential([keras.Input([64])])
    for _ in range(blocks):
        net.add(layers.Dense(64, activation="relu"))
        net.add(layers.LayerNormalization())
    net.add(layers.Dense(10))
    return net


def cnn() -> keras.Model:
    """Makes a small convolutional net."""
    return keras.Sequential(
        [
            keras.Input([28, 28, 1]),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )


def transformer(width: int = 256, depth: int = 4, length: int = 64) -> keras.Model:
    """Makes a transformer language model."""
    inputs = keras.Input([length], dtype="int32")
    x = layers.Embedding(1_000, width)(inputs)
    for _ in range(depth):
        y = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(4, width // 4)(y, y)
        y = layers.LayerNormalization()(x)
        x = x + layers.Dense(width)(layers.Dense(4 * width, activation="gelu")(y))
    return keras.Model(inputs, layers.Dense(1_000)(x))


def many_heads() -> keras.Model:
    """Makes a net with 50 heads."""
    inputs = keras.Input([64])
    x = layers.Dense(128, activation="relu")(inputs)
    return keras.Model(inputs, {f"head_{i}": layers.Dense(1)(x) for i in range(HEADS)})


def classification(*shape: int, count: int = 2_000) -> Callable[[], Arrays]:
    """Makes random images or vectors in ten classes."""

    def arrays() -> Arrays:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(count, *shape)).astype(np.float32)
        return {"x": x, "y": rng.integers(0, 10, count).astype(np.int32)}

    return arrays


def tokens() -> Arrays:
    """Makes random token sequences."""
    text = np.random.default_rng(0).integers(0, 1_000, (500, 65)).astype(np.int32)
    return {"x": text[:, :-1], "y": text[:, 1:]}


def regression() -> Arrays:
    """Makes random inputs and a target for each head."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2_000, 64)), rng.normal(size=(2_000, HEADS))
    return {"x": x.astype(np.float32), "targets": y.astype(np.float32)}


# Workloads that any backend can train on integer labels: net, arrays, batch size, steps per call.
CLASSIFIERS = {
    "mlp": (mlp, classification(784), 32, 100),
    "small": (small, classification(64), 32, 100),
    "cnn": (cnn, classification(28, 28, 1), 64, 100),
    "transformer": (transformer, tokens, 16, 20),
}
