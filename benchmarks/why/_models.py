"""Both models in both forms, in the sizes of the examples' configs, and a batch for each."""

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
    """Makes a `Detector`, or its split form for `fit`."""
    if whole:
        kind = load("detector/model.py").Detector
    else:
        from detector_split import SplitDetector as kind
    return kind(10, (size, size), DETECTOR["anchors"])


def penguins(whole: bool):
    """Makes a `Penguins` with all tasks, or its split form for `fit`."""
    if whole:
        return load("penguins/model.py").Penguins(STATISTICS)
    from penguins_split import SplitPenguins

    return SplitPenguins(STATISTICS)


def detector_batch(size: int = DETECTOR["size"]) -> dict[str, tf.Tensor]:
    """Makes a batch of noise with boxes: the cost of a step does not depend on the images."""
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
    """Makes a batch of random penguins without missing labels."""
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
    """Eight tasks with dense predictions, where the split form keeps the largest tensors alive."""

    def __init__(self, whole: bool):
        super().__init__()
        self.whole = whole
        self.trunk = keras.layers.Conv2D(16, 3, padding="same", activation="relu")
        self.heads = [keras.layers.Conv2D(21, 1) for _ in range(8)]

    def call(self, batch, training=False):
        """Returns losses, or logits in the split form."""
        features, out = self.trunk(batch["image"]), {}
        for i, head in enumerate(self.heads):
            logits = head(features)
            out[f"task_{i}"] = pixel_loss(batch["label"], logits) if self.whole else logits
        return out


def pixel_loss(label, logits):
    """Computes the mean cross entropy of all pixels."""
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(label, logits))


def dense_batch() -> dict[str, tf.Tensor]:
    """Makes 16 images of 128x128 with a class for each pixel."""
    random = np.random.RandomState(0)
    image = random.rand(16, 128, 128, 3).astype(np.float32)
    return {
        "image": tf.constant(image),
        "label": tf.constant(random.randint(0, 21, [16, 128, 128])),
    }
