"""A training script for several workers, one of which does something else.

    python tests/distribute/unequal.py KIND WORKDIR [STEPS]

Each kind is a difference that the last worker has. The script prints the step that it ended with.
The variable LATE=RANK:WHERE:SECONDS delays a worker: it "reads" each message late that is not part
of a comparison, or it "looks" at the answers of the others late, at each comparison.
"""

import os
import signal
import sys
import time

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import keras
import numpy as np
import tensorflow as tf

import tfloss
from tfloss import hooks
from tfloss.distribute.control_channel import ControlChannel
from tfloss.distribute.strategy import worker_position


class Net(keras.Model):
    """A small model, which differs if `other` is the name of a difference."""

    def __init__(self, other: str):
        super().__init__(name="net")
        self.first = keras.layers.Dense(5 if other == "width" else 4, name="first")
        self.last = keras.layers.Dense(1, name="last")
        self.more = keras.layers.Dense(1, name="more") if other == "layer" else None
        self.other = other

    def call(self, batch, training=False):
        h = self.first(batch["x"])
        y = self.last(h)
        if self.more is not None:
            y += self.more(h)
        if not training:
            return {"y": y}
        if self.other == "fails_tracing":
            raise ValueError("no such file: labels.txt")
        tfloss.summary.scalar("mean", tf.reduce_mean(y))
        if self.other == "histogram":
            tfloss.summary.histogram("hidden", h)
        if self.other == "scalar":
            tfloss.summary.scalar("more", tf.reduce_mean(h))
        factor = 3.0 if self.other == "formula" else 2.0
        loss = factor * tf.reduce_mean((y - batch["y"]) ** 2)
        return {"other" if self.other == "loss" else "mse": loss}


class Act(hooks.Hook):
    """Does something at step 3, on one worker."""

    every = hooks.Every(steps=1)

    def __init__(self, action=lambda: None):
        super().__init__()
        self.action = action

    def after_step(self, step):
        print(f"step {step}", flush=True)
        time.sleep(0.02)
        if step == 3:
            self.action()


def data(other: str):
    count = 40 if other in ("data", "ends") else 64
    batch = 4 if other in ("batch", "shapes") else 8
    x = np.random.RandomState(0).randn(count, 3).astype(np.float32)
    found = tf.data.Dataset.from_tensor_slices({"x": x, "y": 2 * x[:, :1]}).batch(batch)
    if "ends" in sys.argv[1]:  # of unknown length
        return found.filter(lambda b: True)
    if "shapes" in sys.argv[1]:
        return found.repeat()
    if other == "dtype":
        return found.map(lambda b: {**b, "x": tf.cast(b["x"], tf.float64)})
    if other == "raises":

        def check(batch):
            tf.debugging.assert_less(tf.reduce_max(batch["x"]), 1.5, "a bad example")
            return batch

        return found.map(check)
    if other == "sleeps":  # inside of a step, while another worker waits in a collective

        def sleep(value):
            if value == 3:
                time.sleep(1000)
            return value

        numbered = tf.data.Dataset.range(1, 100).map(
            lambda n: tf.numpy_function(sleep, [n], tf.int64, stateful=True)
        )
        return tf.data.Dataset.zip(found, numbered).map(lambda batch, n: batch)
    return found


def be_late(rank: int) -> None:
    """Delays this worker, if the variable LATE names it."""
    late, where, seconds = os.environ.get("LATE", "-1::0").split(":")
    if rank != int(late):
        return
    handle, wait = ControlChannel._handle, ControlChannel._wait

    def handle_late(self, rank, message):
        if where == "reads" and "count" not in message:
            time.sleep(float(seconds))
        handle(self, rank, message)

    def wait_late(self, count, place):
        if where == "looks" and place.startswith("the comparison"):
            time.sleep(float(seconds))
        return wait(self, count, place)

    ControlChannel._handle, ControlChannel._wait = handle_late, wait_late


def main() -> None:
    kind, workdir = sys.argv[1:3]
    be_late(int(os.environ["JOB_COMPLETION_INDEX"]))
    steps = int(sys.argv[3]) if len(sys.argv) > 3 else 8
    strategy = tfloss.make_strategy("multi_worker")
    index, workers = worker_position(strategy)
    other = kind if index == workers - 1 else ""
    if other == "fails":
        raise ValueError("no such file: labels.txt")
    if other == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = Net(other)
        if other == "fails_building":
            raise ValueError("no such file: labels.txt")
        if other == "variable":
            tf.Variable(1.0, name="mine")
        optimizer = (
            keras.optimizers.Adam(0.01)
            if other == "optimizer"
            else keras.optimizers.SGD(0.02 if other == "rate" else 0.01)
        )
    actions = {
        "hook_rate": lambda: optimizer.learning_rate.assign(0.5),
        "killed_later": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "exits_later": lambda: os._exit(3),
        "fails_later": lambda: 1 / 0,
        "hangs": lambda: time.sleep(1000),
    }
    mine = [Act(actions.get("hangs" if kind == "all_hang" else other, lambda: None))]
    if other == "hook":
        mine.append(hooks.Evaluate(data(""), {}, losses=True, every=hooks.Every(steps=2)))
    if "hang" in kind:
        mine.append(hooks.Watchdog(seconds=20.0, exit=True))
    options = {
        "clip_norm": {"clip_norm": 1.0},
        "weight": {"loss_weights": {"mse": 2.0}},
        "accumulate": {"accumulate": 2},
        "log_every": {"log_every": 3},
        "seed": {"seed": 7},
        "jit": {"jit": True},
    }.get(other, {})
    trainer = tfloss.Trainer(
        model,
        optimizer,
        strategy=strategy,
        workdir=workdir,
        hooks=mine,
        **{"log_every": 4, "jit": False, **options},
    )
    if other == "evaluates":
        trainer.evaluate(data(""), losses=True)
    result = trainer.train(data(other), steps + (other == "steps"))
    print(f"ended at {result.step}", flush=True)


if __name__ == "__main__":
    main()
