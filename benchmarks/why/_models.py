"""Both forms of both models, of the size of the examples' configs, and a batch for each."""

import keras
import numpy as np
import tensorflow as tf
from _examples import load

DETECTOR = {"batch": 16, "size": 64, "anchors": ((12, 16), (20, 24), (28, 32))}
PENGUINS = {"batch": 32}
STATISTICS = {
    "measurements": ([40.0, 17.0, 200.0], [5.0, 2.0, 14.0]),
    "mass": ([4000.0], [800.0]),
    "isotopes": ([8.7, -25.7], [0.5, 0.8]),
}


def detector(whole: bool, size: int = DETECTOR["size"]):
    """`Detector`, or what `fit` wants in its place."""
    if whole:
        kind = load("detector/model.py").Detector
    else:
        from detector_split import SplitDetector as kind
    return kind(10, (size, size), DETECTOR["anchors"])


def penguins(whole: bool):
    """`Penguins`, or what `fit` wants in its place, with all tasks."""
    if whole:
        return load("penguins/model.py").Penguins(STATISTICS)
    from penguins_split import SplitPenguins

    return SplitPenguins(STATISTICS)


def detector_batch(size: int = DETECTOR["size"]) -> dict[str, tf.Tensor]:
    """Noise with boxes in it: what a step costs doesn't depend on what is to be seen."""
    random, n = np.random.RandomState(0), DETECTOR["batch"]
    corner = random.uniform(0, size - 32, [n, 5, 2])
    side = random.uniform(12, 32, [n, 5, 2])
    boxes = np.concatenate([corner, corner + side], -1).astype(np.float32)
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    circle = np.stack([np.sin(turn), np.cos(turn)], -1) / 2
    polygons = (corner + side / 2)[:, :, None] + side[:, :, None] * circle
    batch = {
        "image": random.rand(n, size, size, 1).astype(np.float32),
        "id": np.arange(n),
        "boxes": boxes,
        "labels": random.randint(0, 10, [n, 5]),
        "crowd": np.zeros([n, 5], bool),
        "polygons": polygons.astype(np.float32),
    }
    return {name: tf.constant(value) for name, value in batch.items()}


def penguins_batch() -> dict[str, tf.Tensor]:
    """Random penguins, all of whose labels are known."""
    random, n = np.random.RandomState(0), PENGUINS["batch"]
    batch = {
        "measurements": random.normal([40, 17, 200], [5, 2, 14], [n, 3]).astype(np.float32),
        "island": random.randint(0, 3, n),
        "species": random.randint(0, 3, n),
        "sex": random.randint(0, 2, n),
        "mass": random.normal(4000, 800, n).astype(np.float32),
        "isotopes": random.normal([8.7, -25.7], [0.5, 0.8], [n, 2]).astype(np.float32),
    }
    return {name: tf.constant(value) for name, value in batch.items()}


class Dense(keras.Model):
    """Eight tasks that say something of each pixel: where a split has most to keep alive."""

    def __init__(self, whole: bool):
        super().__init__()
        self.whole = whole
        self.trunk = keras.layers.Conv2D(16, 3, padding="same", activation="relu")
        self.heads = [keras.layers.Conv2D(21, 1) for _ in range(8)]

    def call(self, batch, training=False):
        features, out = self.trunk(batch["image"]), {}
        for i, head in enumerate(self.heads):
            logits = head(features)
            out[f"task_{i}"] = pixel_loss(batch["label"], logits) if self.whole else logits
        return out


def pixel_loss(label, logits):
    """Mean cross entropy of all pixels."""
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(label, logits))


def dense_batch() -> dict[str, tf.Tensor]:
    """16 pictures of 128x128, and a class of each pixel."""
    random = np.random.RandomState(0)
    image = random.rand(16, 128, 128, 3).astype(np.float32)
    return {
        "image": tf.constant(image),
        "label": tf.constant(random.randint(0, 21, [16, 128, 128])),
    }
