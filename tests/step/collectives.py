"""Prints the collectives of one training step, for each way to accumulate and each dtype.

    python tests/step/collectives.py mirrored|multi_worker

Each line is `accumulate dtype count`: how many collectives each replica starts in a step.
"""

import os
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import keras
import numpy as np
import tensorflow as tf

import tfloss
from tfloss.engine import mode_runner
from tfloss.inspect.graph_fingerprint import fingerprint

LAYERS = 6


class Deep(keras.Model):
    """Several layers, two of them in another dtype, and a mean over the global batch."""

    def __init__(self, dtype: str):
        super().__init__(name="deep")
        self.layers_ = [keras.layers.Dense(4) for _ in range(LAYERS - 2)]
        self.last = [keras.layers.Dense(4, dtype=dtype) for _ in range(2)]

    def call(self, batch, training=False):
        y = batch["x"]
        for layer in [*self.layers_, *self.last]:
            y = layer(y)
        y = tf.cast(y, tf.float32)
        return {"plain": tf.reduce_mean(y**2), "global": tfloss.global_mean(y**2)}


def main() -> None:
    if sys.argv[1] == "mirrored":
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * 2
        )
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        replicas = 2  # in this process
    else:
        strategy, replicas = tfloss.make_strategy("multi_worker"), 1
    x = np.random.RandomState(0).randn(32, 4).astype(np.float32)
    data = tf.data.Dataset.from_tensor_slices({"x": x}).batch(4, drop_remainder=True).repeat()
    compare = mode_runner.compare_traces
    graphs = []

    def keep(agreement, graph, output):
        graphs.append(graph)
        compare(agreement, graph, output)

    mode_runner.compare_traces = keep
    for accumulate, dtype in ((1, "float32"), (4, "float32"), (1, "float64"), (4, "bfloat16")):
        with strategy.scope():
            model, optimizer = Deep(dtype), keras.optimizers.SGD(0.01)
        trainer = tfloss.Trainer(
            model, optimizer, strategy=strategy, accumulate=accumulate, jit=False, log_every=2
        )
        trainer.train(data, 2)
        kinds = fingerprint(graphs[-1])
        found = {k: n for k, n in kinds.items() if k.startswith(("Collective", "Nccl"))}
        print(accumulate, dtype, sum(found.values()) / replicas, found, flush=True)


if __name__ == "__main__":
    main()
