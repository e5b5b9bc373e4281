"""Compares the predicted peak memory of a step with three measurements, on a CPU.

    python benchmarks/memory.py              # a table of four models
    python benchmarks/memory.py convolutions # one of them, in this process

- Tensors: the bytes of the tensors at the peak of five steps, as TensorFlow's profiler records each
  allocation of 256 kB or more, and those of all variables.
- Blocks: what the allocator takes at most in five steps (`tf.config.experimental.get_memory_info`).
  It gives a tensor a free block as it is if that is less than twice as large, and less than 128 MiB
  larger.
- Resident: the largest resident memory of the process during the same steps, less that before the
  model was made. It has the traced graph and compiled kernels, too, and blocks that were used once.
  A small model is trained first, so that TensorFlow's own memory is there before.
"""

import gc
import glob
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "-1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def dense() -> tuple[Any, Any]:
    """Wide dense layers: mostly weights, slots and gradients."""
    import keras

    layers = [keras.layers.Dense(2048, activation="relu") for _ in range(6)]
    return keras.Sequential([*layers, keras.layers.Dense(10)]), (2048, 1024)


def convolutions() -> tuple[Any, Any]:
    """Convolutions with normalisation: mostly activations."""
    import keras

    layers: list[Any] = []
    for width in (32, 64, 96):
        layers += [
            keras.layers.Conv2D(width, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(),
        ]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    return keras.Sequential(layers), (64, 96, 96, 3)


def attention() -> tuple[Any, Any]:
    """Four blocks of a transformer."""
    import keras

    x = inputs = keras.Input((256, 128))
    for _ in range(4):
        y = keras.layers.LayerNormalization()(x)
        x = x + keras.layers.MultiHeadAttention(4, 32)(y, y)
        y = keras.layers.LayerNormalization()(x)
        x = x + keras.layers.Dense(128)(keras.layers.Dense(512, activation="gelu")(y))
    return keras.Model(inputs, keras.layers.Dense(10)(x)), (32, 256, 128)


def residual() -> tuple[Any, Any]:
    """ResNet50 of Keras."""
    import keras

    return keras.applications.ResNet50(weights=None, input_shape=(96, 96, 3)), (32, 96, 96, 3)


MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    one.__name__: one for one in (dense, convolutions, attention, residual)
}


def resident(name: str) -> int:
    """Bytes of `VmRSS`, the resident memory now, or `VmHWM`, its peak."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def trainer_of(predictor: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """A trainer that minimises the mean square of the outputs, and its data."""
    import keras
    import numpy as np
    import tensorflow as tf

    import tfloss

    class Squares(keras.Model):
        def __init__(self) -> None:
            super().__init__(name="net")
            self.body = predictor

        def call(self, batch: Any, training: bool = False) -> Any:
            y = self.body(batch)
            return {"mean": tf.reduce_mean(y**2)} if training else y

    batch = np.random.default_rng(0).normal(size=shape).astype("float32")
    data = tf.data.Dataset.from_tensors(batch).repeat()
    options: dict[str, Any] = {"jit": False, "default_hooks": False, "steps_per_call": 1}
    return tfloss.Trainer(Squares(), keras.optimizers.Adam(1e-4), seed=0, **options), data


def measure(name: str) -> tuple[int, ...]:
    """Returns the predicted bytes of a model, and those of its tensors, blocks and process."""
    import keras
    import tensorflow as tf

    small, data = trainer_of(keras.Sequential([keras.layers.Dense(4)]), (4, 4))
    small.train(data, steps=3)
    gc.collect()
    before = resident("VmRSS")
    trainer, data = trainer_of(*MODELS[name]())
    predicted = trainer.inspect(data).cost
    trainer.train(data, steps=2)
    gc.collect()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts again
    tf.config.experimental.reset_memory_stats("CPU:0")
    trainer.train(data, steps=7)
    blocks = tf.config.experimental.get_memory_info("CPU:0")["peak"]
    most = resident("VmHWM") - before
    with tempfile.TemporaryDirectory() as folder:
        options = tf.profiler.experimental.ProfilerOptions(host_tracer_level=3)
        with tf.profiler.experimental.Profile(folder, options):
            trainer.train(data, steps=12)
        tensors = predicted.variable_bytes + peak_of_tensors(folder)
    return predicted.peak_bytes, tensors, blocks, most


def peak_of_tensors(folder: str) -> int:
    """The most bytes by which the tensors grew in a profile, over those at its beginning."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace()
    (file,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
    with open(file, "rb") as opened:
        space.ParseFromString(opened.read())
    events = []
    for plane in space.planes:
        names = {key: one.name for key, one in plane.event_metadata.items()}
        keys = {key: one.name for key, one in plane.stat_metadata.items()}
        for line in plane.lines:
            for event in line.events:
                if names[event.metadata_id] in ("MemoryAllocation", "MemoryDeallocation"):
                    stats = {keys[x.metadata_id]: x for x in event.stats}
                    size = stats["requested_bytes"].int64_value
                    made = names[event.metadata_id] == "MemoryAllocation"
                    at = line.timestamp_ns * 1_000 + event.offset_ps
                    events.append((at, size if made else -size))
    total = most = 0
    for _, change in sorted(events):
        total += change
        most = max(most, total)
    return most


def main() -> None:
    """Prints a row for each model, each measured in a process of its own."""
    if len(sys.argv) > 1:
        predicted, *measured = measure(sys.argv[1])
        cells = [f"{size / 1e6:>10,.0f} MB {predicted / size - 1:>+5.0%}" for size in measured]
        print(f"{sys.argv[1]:<14}{predicted / 1e6:>10,.0f} MB{''.join(cells)}")
        return
    titles = "".join(f"{title:>19}" for title in ("tensors", "blocks", "resident"))
    print(f"{'model':<14}{'predicted':>13}{titles}")
    sys.stdout.flush()
    for name in MODELS:
        environment = {**os.environ, **ENVIRONMENT}
        subprocess.run([sys.executable, __file__, name], env=environment, check=True)


if __name__ == "__main__":
    main()
