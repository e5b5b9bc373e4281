"""A training script as users write it, for one process or several workers.

    python tests/workers/script.py WORKDIR STEPS [SECONDS_A_STEP]

The last line it prints is what it ended with, as JSON.
"""

import json
import os
import sys
import time

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.distribute import collective_all_reduce_strategy

import tfloss
from tests.equivalence.worker import two_replicas
from tfloss import hooks


class Net(keras.Model):
    """Synchronises in its forward pass, and normalises by what is valid."""

    def __init__(self):
        super().__init__(name="net")
        self.first = keras.layers.Dense(4, name="first")
        self.norm = keras.layers.BatchNormalization(name="norm", synchronized=True)
        self.own = keras.layers.BatchNormalization(name="own", scale=False, center=False)
        self.last = keras.layers.Dense(1, name="last")

    def call(self, batch, training=False):
        h = self.norm(self.first(batch["x"]), training=training)
        if training:
            self.own(h, training=True)  # each replica has statistics of its own
        y = self.last(h)
        if training:
            tfloss.summary.scalar("y", tf.reduce_mean(y))
            error = tf.reduce_sum((y - batch["y"]) ** 2, -1)
            return {"mse": tfloss.global_mean(error, batch["valid"])}
        return {"y": y}


class Slow(tfloss.Hook):
    every = tfloss.Every(steps=1)

    def after_step(self, step):
        time.sleep(float(sys.argv[3]) if len(sys.argv) > 3 else 0.0)


def main() -> None:
    strategy = tf.distribute.get_strategy()
    if "TF_CONFIG" in os.environ:
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * 2,
        )
        extended = collective_all_reduce_strategy.CollectiveAllReduceExtended
        extended._initialize_local_devices = two_replicas
        strategy = tfloss.make_strategy("multi_worker")
    keras.utils.set_random_seed(0)
    random = np.random.RandomState(0)
    x = random.randn(64, 3).astype(np.float32)
    valid = (random.rand(64) < 0.5).astype(np.float32)
    data = tf.data.Dataset.from_tensor_slices({"x": x, "y": 2 * x[:, :1], "valid": valid})
    test = data.batch(10)
    with strategy.scope():
        model, optimizer = Net(), keras.optimizers.SGD(0.05)

    def export(model, path):
        tfloss.export(model, path, inputs={"x": tf.TensorSpec([None, 3])})

    mse = tfloss.metric(keras.metrics.MeanSquaredError(), lambda b, p: (b["y"], p["y"]))
    trainer = tfloss.Trainer(
        model,
        optimizer,
        strategy=strategy,
        workdir=sys.argv[1],
        hooks=[
            hooks.Evaluate(test, {"mse": mse}, every=tfloss.Every(steps=20), losses=True),
            hooks.ExportBest("val/mse", "min", export=export),
            hooks.EarlyStopping("val/mse", mode="min", patience=1000),
            hooks.SaveCheckpoint(tfloss.Every(seconds=0.5)),
            Slow(),
        ],
        log_every=10,
        seed=3,
    )
    result = trainer.train(data.batch(16).repeat(), steps=int(sys.argv[2]))
    found = trainer.evaluate(test, {"mse": mse}, losses=True)
    export(model, f"{sys.argv[1]}/last")
    weights = {v.path: v.numpy().ravel().tolist() for v in model.weights}
    print(json.dumps({"step": result.step, "val": found, "weights": weights}), flush=True)


if __name__ == "__main__":
    main()
