"""One of several workers, each with two replicas: trains every kind of model.

    tfloss launch --workers 2 -- python -m tests.equivalence.worker DIRECTORY

The first worker leaves the weights in DIRECTORY, one file a kind.
"""

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.python.distribute import collective_all_reduce_strategy

import tfloss
from tests.equivalence.kinds import KINDS, train
from tfloss.distribute.strategy import is_chief

REPLICAS = 2


def two_replicas(self, cluster_resolver, worker_device):
    """TensorFlow gives a worker without GPUs one replica; there is no public way to more."""
    return tuple(f"{worker_device}/device:CPU:{i}" for i in range(REPLICAS)), "CPU"


def main(directory: Path) -> None:
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * REPLICAS,
    )
    extended = collective_all_reduce_strategy.CollectiveAllReduceExtended
    extended._initialize_local_devices = two_replicas
    strategy = tfloss.make_strategy("multi_worker")
    for index, kind in enumerate(KINDS.values()):
        weights = train(kind, strategy)
        if is_chief(strategy):
            np.savez(directory / f"{index}.npz", **weights)
            print(f"{index + 1} of {len(KINDS)}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
