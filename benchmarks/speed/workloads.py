"""The workloads: small kernels, convolutions, a transformer, a detector, many losses.

A workload has a net, its losses as a function of a batch, and an endless data set. All of them use
one seed, so that every contender has the same initial weights and batches.
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from nets import CLASSIFIERS, HEADS, many_heads, regression

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Workload:
    """A row of the table.

    Attributes:
      title: The description of the workload.
      make: Function that makes the net.
      data: Function that makes the endless data set of batches.
      losses: Function `(net, batch) -> {name: scalar}` of the training losses, which may be nested.
      compiled: The arguments of `Model.compile` for the same losses, or None if only `add_loss` can
        express them.
      pair: Function that makes `(x, y)` of a batch, for `compiled`.
      loop: The number of steps per call, for contenders that can choose it.
    """

    title: str
    make: Callable[[], keras.Model]
    data: Callable[[], tf.data.Dataset]
    losses: Callable[[Any, Any], Mapping[str, Any]]
    compiled: Any = None
    pair: Callable[[Any], tuple] = lambda batch: (batch["x"], batch["y"])
    loop: int = 100

    def optimizer(self) -> keras.optimizers.Optimizer:
        """Makes the optimizer of all contenders."""
        return keras.optimizers.Adam(1e-3)


class Owner(keras.Model):
    """A model that returns its losses, for tfloss."""

    def __init__(self, net: keras.Model, losses: Callable):
        super().__init__()
        self.net, self.report = net, losses

    def call(self, batch: Any, training: bool = False) -> Any:
        """Returns the losses."""
        return dict(self.report(self.net, batch))


class Adder(Owner):
    """A model that adds its losses, for `fit`."""

    def call(self, batch: Any, training: bool = False) -> Any:
        """Adds the losses."""
        for value in tf.nest.flatten(self.report(self.net, batch)):
            self.add_loss(value)
        return 0.0


def endless(arrays: Mapping[str, np.ndarray], batch: int) -> tf.data.Dataset:
    """Makes the pipeline of all contenders, without the autotuner, which delays the end of runs."""
    options = tf.data.Options()
    options.autotune.enabled = False
    data = tf.data.Dataset.from_tensor_slices(dict(arrays)).shuffle(256, seed=1).repeat()
    return data.batch(batch, drop_remainder=True).prefetch(2).with_options(options)


def cross_entropy(net: keras.Model, batch: Any) -> dict[str, tf.Tensor]:
    """Computes the mean cross entropy of integer labels."""
    logits = net(batch["x"], training=True)
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["y"], logits)
    return {"cross_entropy": tf.reduce_mean(loss)}


COMPILED = {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}


def many_losses(net: keras.Model, batch: Any) -> dict[str, tf.Tensor]:
    """Computes a squared error for each head."""
    found = net(batch["x"], training=True)
    return {
        name: tf.reduce_mean(tf.square(value[:, 0] - batch["targets"][:, i]))
        for i, (name, value) in enumerate(found.items())
    }


def heads_of(batch: Any) -> tuple:
    """Splits a batch into inputs and the targets of each head."""
    return batch["x"], {f"head_{i}": batch["targets"][:, i : i + 1] for i in range(HEADS)}


def detector() -> keras.Model:
    """Makes the detector of examples/detector."""
    return _example("model").Detector(10, **_config().model)


def scenes() -> tf.data.Dataset:
    """Makes 20 cached batches of digit scenes, repeated."""
    data = _example("input").batches(_config(), 0)[0]
    options = tf.data.Options()
    options.autotune.enabled = False
    return data.take(20).cache().repeat().prefetch(2).with_options(options)


def _config() -> Any:
    sys.path.insert(0, str(ROOT))
    from configs import detector as detector_config

    config = detector_config.get_config()
    config.data_dir = str(ROOT / "runs" / "benchmark_data")
    return config


def _example(name: str) -> Any:
    sys.path.insert(0, str(ROOT / "examples" / "detector"))
    return __import__(name)


TITLES = {
    "mlp": "MLP 784-128-10, batch 32",
    "small": "160 small variables: 40 × (Dense 64, LayerNorm)",
    "cnn": "CNN, 2 convolutions, 28×28, batch 64",
    "transformer": "Transformer, 4 blocks of 256, batch 16×64",
}


def classifier(name: str) -> Workload:
    """Makes the workload of a net of `nets.CLASSIFIERS`."""
    net, arrays, batch, loop = CLASSIFIERS[name]
    return Workload(
        TITLES[name],
        net,
        lambda: endless(arrays(), batch),
        cross_entropy,
        COMPILED,
        loop=loop,
    )


WORKLOADS = {
    **{name: classifier(name) for name in CLASSIFIERS},
    "tasks": Workload(
        f"{HEADS} tasks, {HEADS} losses",
        many_heads,
        lambda: endless(regression(), 32),
        many_losses,
        {"loss": {f"head_{i}": "mse" for i in range(HEADS)}},
        heads_of,
    ),
    "detector": Workload(
        "Two-stage detector with masks, 64×64, batch 16",
        detector,
        scenes,
        lambda net, batch: net(batch, training=True),
        loop=20,
    ),
}
