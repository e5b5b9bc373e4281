"""The cost of an expensive summary at steps that don't record it.

    python benchmarks/summary_cost.py

It trains the same model alternately with and without a histogram of 10 million elements, recorded
every 1,000 steps, and prints the ratio of the step times. Steps that don't record it should take
less than 1.02 of the time. The cost of a step that records it is printed as well.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
from _timing import interleaved, ratio

import tfloss
from tfloss.engine.engine import Engine

ELEMENTS = 10_000_000
STEPS = 999  # the steps between two logs with log_every=1000


class Model(keras.Model):
    """A small MLP, with or without a summary that costs much more than its step."""

    def __init__(self, heavy: bool):
        super().__init__()
        self.net = keras.Sequential([keras.layers.Dense(64, activation="relu") for _ in range(3)])
        self.heavy = heavy

    def call(self, batch, training=False):
        """Returns the loss."""
        y = self.net(batch["x"])
        if self.heavy:
            noise = tf.random.stateless_normal([ELEMENTS], [1, 2])
            tfloss.summary.histogram("heavy", noise * tf.reduce_mean(y))
        return tf.reduce_mean(y**2)


def main() -> None:
    """Runs the benchmark and prints its results."""
    data = tf.data.Dataset.from_tensors({"x": tf.random.normal([64, 64])}).repeat()
    options = tf.data.Options()
    options.autotune.enabled = False
    data = data.with_options(options)
    silent, due = {}, {}
    for name, heavy in (("without", False), ("with", True)):
        step = tfloss.TrainStep(Model(heavy), keras.optimizers.Adam())
        step.build(data.element_spec)
        engine, iterator = Engine(step), iter(data)
        silent[name] = lambda e=engine, i=iterator: e.run(i, STEPS)
        due[name] = lambda e=engine, i=iterator: e.run(i, 1, recording=True)
    seconds = interleaved(silent, rounds=15)
    median, low, high = ratio(seconds, "with", "without")
    each = min(seconds["without"]) / STEPS
    print(f"step without the summary: {1e6 * each:.0f} us")
    print(
        f"steps that don't record, with / without: {median:.4f} (quartiles {low:.4f} to {high:.4f})"
    )
    cost = interleaved(due, rounds=3)
    extra = min(cost["with"]) - min(cost["without"])
    print(f"a step that records costs {1e3 * extra:.0f} ms more ({extra / each:.0f} steps)")
    total = (median * each * STEPS + each + extra) / (each * (STEPS + 1))
    print(f"over 1,000 steps of which one records: {total:.3f}")


if __name__ == "__main__":
    main()
