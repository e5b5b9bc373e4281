"""The cost of what a trainer does beside the steps. It writes runs/overhead.json.

python benchmarks/speed/overhead.py     # ten minutes on two cores

The variants of a row run alternately in one process. A ratio is the median over rounds.
"""

import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1]))

import keras
import numpy as np
import tensorflow as tf
from _timing import interleaved, ratio
from contenders import Hand
from nets import classification, layers, mlp
from workloads import WORKLOADS, Owner, Workload, cross_entropy, endless

import tfloss
from tfloss.hooks import Every, Hook

RESULT = Path(__file__).parents[2] / "runs" / "overhead.json"
ROUNDS = 7


def trainer(work: Workload, model: keras.Model | None = None, warm: int = 250, **options):
    """Returns a function that trains a number of further steps, with a warm trainer."""
    data = work.data()
    options = {"jit": False, "workdir": tempfile.mkdtemp(), **options}
    strategy = options.get("strategy") or tf.distribute.get_strategy()
    with strategy.scope():
        model = model or Owner(work.make(), work.losses)
        one = tfloss.Trainer(model, work.optimizer(), **options)

    def run(steps: int):
        # Runs are long, so that the checkpoint at the end hardly counts.
        one.train(data, one.step + steps)

    run(warm)
    return run


def compared(rows: dict, title: str, variants: dict, base: str, steps: int) -> None:
    """Adds `{title: {variant: [ratio, low, high]}}`: the time of each over that of `base`."""
    calls = {name: (lambda run=run: run(steps)) for name, run in variants.items()}
    seconds = interleaved(calls, ROUNDS)
    rows[title] = {name: ratio(seconds, name, base) for name in variants if name != base}
    for name, (middle, low, high) in rows[title].items():
        print(f"{title}: {name} takes {middle:.3f} ({low:.3f} to {high:.3f}) of {base}", flush=True)


class Terms(keras.Model):
    """A hundred mean squares, as `count` named losses."""

    def __init__(self, count: int):
        super().__init__()
        self.net = keras.Sequential([layers.Dense(128, activation="relu"), layers.Dense(100)])
        self.count = count

    def call(self, batch, training=False):
        """Returns the losses."""
        y = self.net(batch["x"])
        terms = [tf.reduce_mean(tf.square(y[:, i])) for i in range(100)]
        each = 100 // self.count
        return {f"loss_{i}": tf.add_n(terms[i * each : (i + 1) * each]) for i in range(self.count)}


class Drawing(keras.Model):
    """An MLP with or without summaries: a histogram and images."""

    def __init__(self, draws: bool):
        super().__init__()
        self.net, self.draws = mlp(), draws

    def call(self, batch, training=False):
        """Returns the losses."""
        if self.draws:
            tfloss.summary.histogram("x", batch["x"])
            tfloss.summary.image("pictures", tf.reshape(batch["x"], [-1, 28, 28, 1]) / 8 + 0.5)
        return cross_entropy(self.net, batch)


class Nothing(Hook):
    """A hook that does nothing at every step."""

    every = Every(steps=1)


def stack(count: int) -> Workload:
    """A workload of `count` variables, the weights and biases of narrow layers."""

    def make() -> keras.Model:
        net = [layers.Dense(16, activation="tanh") for _ in range(count // 2 - 1)]
        return keras.Sequential([keras.Input([16]), *net, layers.Dense(10)])

    return Workload(f"{count}", make, lambda: endless(classification(16)(), 32), cross_entropy)


def losses(rows: dict) -> None:
    """Compares 1, 10 and 100 named losses."""
    work = WORKLOADS["mlp"]
    for jit in (False, "loop"):
        variants = {f"{n} losses": trainer(work, Terms(n), jit=jit) for n in (1, 10, 100)}
        title = "named losses, as a graph" if jit is False else "named losses, XLA loop"
        compared(rows, title, variants, "1 losses", 1_000)


def variables(rows: dict) -> None:
    """Compares tfloss and a hand-written loop for 10 to 1,000 variables."""
    for count, steps in ((10, 2_000), (100, 400), (1_000, 100)):
        work = stack(count)
        by_hand = Hand(work, "range")
        by_hand.run(200)
        variants = {"tfloss": trainer(work, workdir=None), "by hand": by_hand.run}
        compared(rows, f"{count} variables, as a graph", variants, "by hand", steps)


def logging(rows: dict) -> None:
    """Compares intervals of logging."""
    work = WORKLOADS["mlp"]
    for jit in (False, "loop"):
        title = "logging, as a graph" if jit is False else "logging, XLA loop"
        variants = {
            "every 100 steps": trainer(work, jit=jit),
            "every single step": trainer(work, jit=jit, log_every_step=True),
            "nothing, no workdir": trainer(work, jit=jit, log_every=10**9, workdir=None),
        }
        compared(rows, title, variants, "every 100 steps", 4_000 if jit else 2_000)


def updates(rows: dict) -> None:
    """Compares Keras's Adam and the fused one."""
    for name, steps in (("mlp", 2_000), ("small", 400), ("cnn", 400), ("transformer", 20)):
        work = WORKLOADS[name]
        variants = {
            "Keras' ops": trainer(work, warm=steps, fused_adam=False),
            "one op a variable": trainer(work, warm=steps, fused_adam=True),
        }
        title = f"Adam, as a graph, {work.title.partition(',')[0].partition(':')[0]}"
        compared(rows, title, variants, "Keras' ops", steps)


def summaries(rows: dict) -> None:
    """Compares steps with and without summaries."""
    work = WORKLOADS["mlp"]
    variants = {
        "none": trainer(work, Drawing(False)),
        "not due": trainer(work, Drawing(True), log_every=10**9),
        "due every 100 steps": trainer(work, Drawing(True)),
    }
    compared(rows, "a histogram and pictures, as a graph", variants, "none", 2_000)


def hooks(rows: dict) -> None:
    """Compares training with and without a hook at every step."""
    work = WORKLOADS["mlp"]
    for jit in (False, "loop"):
        title = "a hook at every step" + (", as a graph" if jit is False else ", XLA loop")
        variants = {
            "none": trainer(work, jit=jit),
            "hook": trainer(work, jit=jit, hooks=[Nothing()]),
        }
        compared(rows, title, variants, "none", 1_000)


def replicas(rows: dict) -> None:
    """Compares one and two replicas on the same cores."""
    work = WORKLOADS["cnn"]
    two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    variants = {"one": trainer(work), "two": trainer(work, strategy=two)}
    compared(rows, "two replicas on the same two cores, CNN", variants, "one", 500)


def checkpoints(rows: dict) -> None:
    """Times saving a checkpoint."""
    rng = np.random.default_rng(0)
    data = endless({"x": rng.normal(size=(64, 1_000)).astype("float32")}, 32)
    for megabytes in (1, 100):
        units = megabytes * 2**20 // 4 // 3 // 1_000  # weights and Adam's two slots
        net = keras.Sequential([keras.Input([1_000]), layers.Dense(units, use_bias=False)])
        model = Owner(net, lambda net, batch: {"square": tf.reduce_mean(net(batch["x"]) ** 2)})
        one = tfloss.Trainer(model, keras.optimizers.Adam(), workdir=tempfile.mkdtemp(), jit=False)
        one.train(data, 2)
        took = []
        for _ in range(ROUNDS):
            one.train(data, one.step + 1)
            began = time.perf_counter()
            one.save_checkpoint()
            took.append(time.perf_counter() - began)
        rows[f"a checkpoint of {megabytes} MB"] = {"seconds": sorted(took)[ROUNDS // 2]}
        print(f"a checkpoint of {megabytes} MB: {sorted(took)[ROUNDS // 2]:.3f} s", flush=True)


def main() -> None:
    """Measures all parts, or those of the command line, and writes the result."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    rows: dict = {}
    parts = (losses, variables, updates, logging, summaries, hooks, checkpoints, replicas)
    with open(os.devnull, "w") as null, contextlib.redirect_stderr(null):  # progress lines
        for part in parts:
            if len(sys.argv) < 2 or part.__name__ in sys.argv[1:]:
                part(rows)
    RESULT.parent.mkdir(exist_ok=True)
    if RESULT.exists():
        rows = {**json.loads(RESULT.read_text()), **rows}
    RESULT.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
