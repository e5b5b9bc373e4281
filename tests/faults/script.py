"""A training script that is killed by `driver.py`; each kind of run is one of KINDS.

    python -m tests.faults.script digits WORKDIR

It trains a small net with Dropout and BatchNormalization on the digits for STEPS steps, saves every
few of them, evaluates and logs, and takes some time for each step, so that a kill finds it at work.
"""

import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import tensorflow as tf

import tfloss
from tests.faults.pipelines import BATCH, PIPELINES, arrays
from tfloss import hooks
from tfloss.data import Source
from tfloss.data.tfds_prepare import prepared
from tfloss.datasets.digits import Digits

STEPS = 60
SECONDS = 0.02  # of pause after each step


class Net(keras.Model):
    """Two dense layers; two losses, one of them added."""

    def __init__(self):
        super().__init__(name="net")
        self.first = keras.layers.Dense(32, name="first")
        self.norm = keras.layers.BatchNormalization(name="norm")
        self.drop = keras.layers.Dropout(0.3, name="drop")
        self.last = keras.layers.Dense(10, name="last")

    def call(self, batch, training=False):
        x = tf.reshape(tf.cast(batch["image"], tf.float32), [-1, 64])
        hidden = tf.nn.relu(self.norm(self.first(x), training=training))
        hidden = self.drop(hidden, training=training)
        logits = self.last(hidden)
        if not training:
            return {"logits": logits}
        tfloss.summary.histogram("hidden", hidden)
        tfloss.add_loss(self.first, size=1e-3 * tf.reduce_mean(hidden**2))
        each = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits)
        return {"cross_entropy": tf.reduce_mean(each)}


class Bare(Net):
    """The same net without summaries, so that no step of it need be recorded."""

    def call(self, batch, training=False):
        x = tf.reshape(tf.cast(batch["image"], tf.float32), [-1, 64])
        hidden = tf.nn.relu(self.norm(self.first(x), training=training))
        logits = self.last(self.drop(hidden, training=training))
        if not training:
            return {"logits": logits}
        each = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits)
        return {"cross_entropy": tf.reduce_mean(each)}


class Halve(hooks.Hook):
    """Halves the learning rate now and then: it must survive too."""

    every = hooks.Every(steps=17)

    def after_step(self, step):
        rate = self.trainer.optimizer.learning_rate
        rate.assign(0.5 * rate)


class Pause(hooks.Hook):
    """Takes time, and counts: its state must survive too."""

    every = hooks.Every(steps=1)

    def before_train(self):
        self.told = False

    def after_step(self, step):
        if not self.told:
            self.told = True
            print("TRAINING", flush=True)
        self.state["calls"] = self.state.get("calls", 0) + 1
        self.state["drawn"] = float(np.random.rand())  # the process's own generator
        self.trainer.log(
            step, {"pause/calls": self.state["calls"], "pause/drawn": self.state["drawn"]}
        )
        time.sleep(SECONDS)


def noisy(batch, seed):
    """Augmentation: every picture a little different each time."""
    noise = tf.random.stateless_normal(tf.shape(batch["image"]), seed, stddev=0.1)
    return {**batch, "image": tf.cast(batch["image"], tf.float32) + noise}


def source(**options):
    return Source(arrays(), batch_size=BATCH, seed=3, batch_map=noisy, **options)


def shuffled():
    data = tf.data.Dataset.from_tensor_slices(arrays()).shuffle(500, seed=3).repeat()
    return data.batch(BATCH, drop_remainder=True).prefetch(2)


def from_tfds(workdir):
    folder = Path(workdir).parent / "tfds"
    prepared(lambda: Digits(data_dir=folder))
    return Source.from_tfds("digits", "train", data_dir=folder, batch_size=BATCH, batch_map=noisy)


def piped(name):
    """The data of one of the pipelines, as a function of the workdir."""
    return lambda workdir: PIPELINES[name](Path(workdir).with_suffix(".data"))


def epoch():
    """Finite data: 20 batches, the last of which is smaller, in another order in each pass."""
    data = tf.data.Dataset.from_tensor_slices(arrays()).take(20 * BATCH - 5)
    return data.shuffle(500, seed=3).batch(BATCH).prefetch(2)


def groups(model):
    """Losses belong to the group that their names begin with."""
    momentum = keras.optimizers.SGD(0.01, momentum=0.9)
    return {
        "cross_entropy": (keras.optimizers.Adam(1e-3), model.last),
        "net": tfloss.Group(momentum, [model.first, model.norm], every=2),
    }


def adam(model):
    rate = keras.optimizers.schedules.CosineDecay(1e-2, STEPS)
    return keras.optimizers.Adam(rate)


def inputs():
    return {"image": tf.TensorSpec([None, 64], tf.float32)}


def best_model():
    """Exports a SavedModel, a second or so each time."""
    write = lambda model, path: tfloss.export(model, path, inputs())  # noqa: E731
    return hooks.ExportBest("val/accuracy", export=write)


def constant(model):
    return keras.optimizers.Adam(1e-2)


# Hooks of a kind, behind Evaluate.
HOOKS = {
    "rate": lambda: [Halve()],
    "exports": lambda: [best_model(), hooks.ReduceOnPlateau("val/accuracy", patience=1)],
    "exports_loop": lambda: [best_model()],
    "weights": lambda: [
        hooks.ExportBest("val/accuracy", ema=True),
        Halve(),
        hooks.ReduceOnPlateau("val/accuracy", patience=2),
    ],
}
# Kinds that export, and are killed while they do.
EXPORTING = ["exports", "exports_loop", "weights"]

# Data, optimizer, and options of the Trainer.
KINDS = {
    "digits": (lambda workdir: source(), adam, {}),
    "accumulate": (lambda workdir: source(), adam, {"accumulate": 4, "clip_norm": 1.0}),
    "groups": (lambda workdir: source(), groups, {}),
    "ema": (lambda workdir: source(), adam, {"ema": 0.9, "async_checkpoint": True}),
    "replicas": (lambda workdir: source(), adam, {}),
    "workers": (lambda workdir: source(), adam, {}),
    "tfds": (from_tfds, adam, {}),
    "shuffle": (lambda workdir: shuffled(), adam, {}),
    "shuffle_replicas": (lambda workdir: shuffled(), adam, {}),
    "loop": (lambda workdir: shuffled(), adam, {"jit": "loop"}),
    "bare_1": (lambda workdir: shuffled(), adam, {"jit": "loop", "log_every": 1}),
    "bare_3": (lambda workdir: source(), adam, {"jit": "loop", "log_every": 3}),
    "bare_5": (lambda workdir: shuffled(), adam, {"jit": "loop", "log_every": 5}),
    "every_step": (lambda workdir: source(), adam, {"log_every_step": True}),
    "rate": (lambda workdir: source(), constant, {}),
    "exports": (lambda workdir: source(), constant, {"log_every_step": True}),
    "exports_loop": (lambda workdir: shuffled(), adam, {"jit": "loop"}),
    "weights": (lambda workdir: shuffled(), constant, {"ema": 0.9, "log_every_step": True}),
    "epochs": (lambda workdir: epoch(), adam, {}),
    "epochs_loop": (lambda workdir: epoch(), adam, {"jit": "loop"}),
    "epochs_replicas": (lambda workdir: epoch(), adam, {}),
    **{f"pipe_{name}": (piped(name), adam, {}) for name in PIPELINES},
    **{f"loop_{name}": (piped(name), adam, {"jit": "loop"}) for name in PIPELINES},
}


def main(kind: str, workdir: str) -> None:
    strategy = tf.distribute.get_strategy()
    if kind.endswith("replicas"):
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * 2
        )
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    if kind == "workers":
        strategy = tfloss.make_strategy("multi_worker")
    keras.utils.set_random_seed(1)
    data, optimizer, options = KINDS[kind]
    with strategy.scope():
        model = Bare() if kind.startswith("bare") else Net()
        accuracy = tfloss.metric(
            keras.metrics.SparseCategoricalAccuracy(),
            lambda batch, predictions: (batch["label"], predictions["logits"]),
        )
        test = tf.data.Dataset.from_tensor_slices(arrays()).take(300).batch(100)
        trainer = tfloss.Trainer(
            model,
            optimizer(model),
            strategy=strategy,
            workdir=workdir,
            seed=7,
            hooks=[
                hooks.Evaluate(
                    test,
                    {"accuracy": accuracy},
                    every=hooks.Every(steps=6 if kind in EXPORTING else 25),
                ),
                *HOOKS.get(kind, list)(),
                hooks.EarlyStopping("val/accuracy", patience=100),
                Pause(),
                hooks.SaveCheckpoint(
                    hooks.Every(steps=5), keep_last=2, keep_best=1, metric="val/accuracy"
                ),
            ],
            **{"jit": False, "log_every": 7, **options},
        )
    batches, epochs = data(workdir), 3 if kind.startswith("epochs") else 1
    for number in range(1, epochs + 1):
        trainer.train(batches, STEPS * number // epochs)
    if kind in EXPORTING:
        for _ in range(2):  # the second one replaces the first
            tfloss.export(model, Path(workdir) / "final", inputs())


if __name__ == "__main__":
    main(*sys.argv[1:])
