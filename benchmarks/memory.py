"""Compares the predicted peak memory of a step with the measured one, on a CPU.

    python benchmarks/memory.py              # a table of four models
    python benchmarks/memory.py convolutions # one of them, in this process

Measured is the largest resident memory during steps 3 to 5, less that before the model was made. A
small model is trained first, so that TensorFlow's own memory is there before. Blocks of 64 kB and
more are returned to the system when they are freed (MALLOC_MMAP_THRESHOLD_).
"""

import gc
import os
import subprocess
import sys
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


def measure(name: str) -> tuple[int, int]:
    """Returns the predicted and the measured bytes of a model."""
    import keras

    small, data = trainer_of(keras.Sequential([keras.layers.Dense(4)]), (4, 4))
    small.train(data, steps=3)
    gc.collect()
    before = resident("VmRSS")
    trainer, data = trainer_of(*MODELS[name]())
    predicted = trainer.inspect(data).cost.peak_bytes
    trainer.train(data, steps=2)
    gc.collect()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts again
    trainer.train(data, steps=5)
    return predicted, resident("VmHWM") - before


def main() -> None:
    """Prints a row for each model, each measured in a process of its own."""
    if len(sys.argv) > 1:
        predicted, measured = measure(sys.argv[1])
        error = predicted / measured - 1
        sizes = "".join(f"{size / 1e6:>10,.0f} MB" for size in (predicted, measured))
        print(f"{sys.argv[1]:<14}{sizes}{error:>+9.1%}")
        return
    print(f"{'model':<14}{'predicted':>13}{'measured':>13}{'error':>9}")
    sys.stdout.flush()
    for name in MODELS:
        environment = {**os.environ, **ENVIRONMENT}
        subprocess.run([sys.executable, __file__, name], env=environment, check=True)


if __name__ == "__main__":
    main()
