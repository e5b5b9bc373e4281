"""The cost of checking at every step that the losses are finite.

    python benchmarks/guard.py

It compares interleaved step times with the guard (an assertion that the update depends on), without
it, and with `skip_nonfinite` (a `tf.cond` around the update), and prints medians of ratios.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
from _timing import interleaved, ratio

import tfloss
from tfloss.engine.engine import Engine

STEPS = 100


class Model(keras.Model):
    """A stack of `depth` times (Dense 64, LayerNormalization), which have 4 variables each."""

    def __init__(self, depth: int):
        super().__init__()
        self.net = keras.Sequential(
            [make() for _ in range(depth) for make in (_dense, keras.layers.LayerNormalization)]
        )

    def call(self, batch, training=False):
        """Returns the loss."""
        return tf.reduce_mean(self.net(batch["x"]) ** 2)


def _dense():
    return keras.layers.Dense(64)


def main() -> None:
    """Runs the benchmark and prints its results."""
    data = tf.data.Dataset.from_tensors({"x": tf.random.normal([32, 64])}).repeat()
    options = tf.data.Options()
    options.autotune.enabled = False
    data = data.with_options(options)
    for depth, mode in ((1, "graph"), (40, "graph"), (40, "step")):
        calls = {}
        for name, skip, guard in (
            ("no check", False, False),
            ("guard", False, True),
            ("skip_nonfinite", True, True),
        ):
            step = tfloss.TrainStep(Model(depth), keras.optimizers.Adam(), skip_nonfinite=skip)
            step.build(data.element_spec)
            engine, iterator = Engine(step, mode=mode, guard=guard), iter(data)
            calls[name] = lambda e=engine, i=iterator: e.run(i, STEPS)
        seconds = interleaved(calls, rounds=9)
        print(f"{4 * depth} variables, mode {mode}: {STEPS / min(seconds['no check']):.0f} steps/s")
        for name in ("guard", "skip_nonfinite"):
            median, low, high = ratio(seconds, name, "no check")
            print(f"  step time with {name}: x {median:.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
