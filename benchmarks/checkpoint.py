"""How long training waits for a checkpoint, written synchronously or in the background.

    python benchmarks/checkpoint.py

A model with 400 MB of variables (weights and Adam's slots) saves alternately in both ways. The
results are medians over ROUNDS. It then measures the time of a step while a checkpoint is written,
and how fast a checkpoint is verified.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import statistics
import tempfile
import time
from pathlib import Path

import keras
import tensorflow as tf
from _timing import interleaved, ratio

import tfloss
from tfloss.checkpoint import BackgroundWriter, CheckpointDirectory
from tfloss.engine.engine import Engine
from tfloss.trainer.checkpointed_variables import CheckpointedVariables

ROUNDS = 9
LAYERS, WIDTH = 33, 1024  # 4 MB per layer, three times with Adam's slots


class Model(keras.Model):
    """A stack of large dense layers."""

    def __init__(self):
        super().__init__()
        self.net = keras.Sequential([keras.layers.Dense(WIDTH) for _ in range(LAYERS)])

    def call(self, batch, training=False):
        """Returns the loss."""
        return tf.reduce_mean(self.net(batch["x"]) ** 2)


def main() -> None:
    """Runs the benchmark and prints its results."""
    data = tf.data.Dataset.from_tensors({"x": tf.random.normal([8, WIDTH])}).repeat()
    options = tf.data.Options()
    options.autotune.enabled = False
    data = data.with_options(options)
    step = tfloss.TrainStep(Model(), keras.optimizers.Adam(1e-6))
    step.build(data.element_spec)
    engine, iterator = Engine(step), iter(data)
    engine.run(iterator, 1)
    variables = CheckpointedVariables(step).variables()
    size = sum(v.numpy().nbytes for v in variables.values()) / 1e6

    with tempfile.TemporaryDirectory() as folder:
        directory, writer = CheckpointDirectory(folder), BackgroundWriter()
        writes = []

        def save(background: BackgroundWriter | None) -> None:
            number = len(directory.steps()) + 1
            directory.save(number, variables, background=background)

        def finish() -> None:
            began = time.perf_counter()
            writer.wait()
            writes.append(time.perf_counter() - began)
            for old in directory.steps():
                directory.delete(old)

        seconds = interleaved(
            {
                "synchronous": lambda: save(None),
                "in the background": lambda: save(writer),
                "rest of the background write": finish,
            },
            ROUNDS,
        )
        print(f"{size:.0f} MB in {len(variables)} variables, medians of {ROUNDS}")
        for name, found in seconds.items():
            print(f"  {name}: {statistics.median(found):.3f} s")
        middle, low, high = ratio(seconds, "in the background", "synchronous")
        print(f"  training waits {middle:.1%} of the synchronous time ({low:.1%} to {high:.1%})")

        def steps() -> float:
            """Seconds per step, over one second; a write takes longer than that."""
            count, began = 0, time.perf_counter()
            while time.perf_counter() - began < 1.0 or count < 3:
                engine.run(iterator, 1)
                count += 1
            return (time.perf_counter() - began) / count

        steps()
        quiet, busy = [], []
        for _ in range(ROUNDS):
            quiet.append(steps())
            directory.save(1, variables, background=writer)
            busy.append(steps())
            writer.wait()
            directory.delete(1)
        print(
            f"  a step takes {statistics.median(quiet) * 1e3:.0f} ms, in the second after a save "
            f"{statistics.median(busy) * 1e3:.0f} ms"
        )

        directory.save(1, variables)
        checks = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            assert directory.problem(1) is None
            checks.append(time.perf_counter() - began)
        size_on_disk = sum(file.stat().st_size for file in Path(folder, "step_00000001").iterdir())
        speed = size_on_disk / 1e6 / statistics.median(checks)
        print(f"  verification: {speed:.0f} MB/s")


if __name__ == "__main__":
    main()
