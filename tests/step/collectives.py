"""Prints how many collectives each replica starts in a training step.

    python tests/step/collectives.py mirrored|multi_worker ACCUMULATE,DTYPE ...

Two layers have the dtype. Each line is `count ACCUMULATE,DTYPE`.
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
    for case in sys.argv[2:]:
        accumulate, dtype = case.split(",")
        with strategy.scope():
            model, optimizer = Deep(dtype), keras.optimizers.SGD(0.01)
        trainer = tfloss.Trainer(
            model, optimizer, strategy=strategy, accumulate=int(accumulate), jit=False, log_every=2
        )
        trainer.train(data, 2)
        kinds = fingerprint(graphs[-1])
        found = sum(n for kind, n in kinds.items() if kind.startswith(("Collective", "Nccl")))
        print(f"\n{found / replicas:g} {case}", flush=True)


if __name__ == "__main__":
    main()
