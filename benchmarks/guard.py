"""The cost of checking at every step that losses and gradients are finite.

    python benchmarks/guard.py                   # many small kernels
    python benchmarks/guard.py mlp small cnn     # workloads of benchmarks/speed

It compares interleaved step times without a check, with that of the losses (an assertion that the
update depends on), with that of losses and gradients, and with `skip_nonfinite` (a `tf.cond` around
the update), and prints medians of ratios. The workloads run in all modes of the engine.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
from _timing import interleaved, ratio

import tfloss
from tfloss.data.stacked_batches import BatchStacker
from tfloss.engine.engine import Engine


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


KINDS = {
    "no check": {"guard": False, "check_gradients": False},
    "losses": {"guard": True, "check_gradients": False},
    "losses and gradients": {"guard": True, "check_gradients": True},
    "skip_nonfinite": {"guard": True, "check_gradients": True},
}


def compare(title: str, make, data, mode: str, calls: int, kinds=tuple(KINDS)) -> None:
    """Prints the ratios for one model.

    Args:
      title: What is measured.
      make: Returns a model and an optimizer.
      data: Endless data set of batches.
      mode: Mode of the engine.
      calls: Steps in one measured call.
      kinds: Which of `KINDS` to compare.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    data = data.with_options(options)
    runs = {}
    for name in kinds:
        step = tfloss.TrainStep(*make(), skip_nonfinite=name == "skip_nonfinite")
        step.build(data.element_spec)
        iterator = iter(data)
        if mode == "loop":
            iterator = BatchStacker(iterator, endless=True)
            iterator.reads_ahead = True
        engine = Engine(step, mode=mode, **KINDS[name])
        runs[name] = lambda e=engine, i=iterator: _run(e, i, calls)
    seconds = interleaved(runs, rounds=31)
    print(f"{title}, mode {mode}: {calls / min(seconds['no check']):.0f} steps/s")
    for name in kinds[1:]:
        median, low, high = ratio(seconds, name, "no check")
        print(f"  step time with {name}: x {median:.3f} ({low:.3f} to {high:.3f})", flush=True)


def _run(engine: Engine, iterator, steps: int) -> None:
    while steps > 0:
        steps -= engine.run(iterator, steps).rows().shape[0]


def main() -> None:
    """Runs the benchmark and prints its results."""
    if sys.argv[1:]:
        sys.path.insert(0, str(Path(__file__).parent / "speed"))
        from workloads import WORKLOADS, Owner

        for name in sys.argv[1:]:
            work = WORKLOADS[name]
            calls = {"mlp": 200, "small": 50, "cnn": 20}.get(name, 2)
            for mode in ("graph", "step", "loop"):
                compare(
                    name,
                    lambda work=work: (Owner(work.make(), work.losses), work.optimizer()),
                    work.data().take(64).cache().repeat(),
                    mode,
                    calls,
                    ("no check", "losses", "losses and gradients"),
                )
        return
    data = tf.data.Dataset.from_tensors({"x": tf.random.normal([32, 64])}).repeat()
    for depth, mode in ((1, "graph"), (40, "graph"), (40, "step")):
        compare(
            f"{4 * depth} variables",
            lambda depth=depth: (Model(depth), keras.optimizers.Adam()),
            data,
            mode,
            100,
        )


if __name__ == "__main__":
    main()
