"""Beginning and ending take no time: what is imported, and how soon `train` returns."""

import json
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.toys import Line
from tfloss.hooks import Every, Hook

IMPORTS = """
import compileall, importlib.util, json, pathlib, sys, time
import tensorflow, keras
# Python compiles a package when it is installed or first imported, and keeps the bytecode.
sys.dont_write_bytecode, sys.pycache_prefix = False, sys.argv[1]
where = pathlib.Path(importlib.util.find_spec("tfloss").origin).parent
assert compileall.compile_dir(where, quiet=1)
before = set(sys.modules)
began = time.process_time()
import tfloss
tfloss.Trainer, tfloss.summary.scalar, tfloss.hooks.TensorBoard, tfloss.export
seconds = time.process_time() - began
print(json.dumps({"seconds": seconds, "modules": sorted(set(sys.modules) - before)}))
"""
# Imported by the functions that need them.
HEAVY = {
    "tensorflow_datasets",
    "tensorboard",
    "rich",
    "ml_collections",
    "sklearn",
    "matplotlib",
    "PIL",
    "mlflow",
    "wandb",
    "pycocotools",
}


def test_importing_is_quick_and_imports_no_heavy_package(tmp_path):
    def imported():
        done = subprocess.run(
            [sys.executable, "-c", IMPORTS, str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
            cwd="/",
        )
        return json.loads(done.stdout.splitlines()[-1])

    found = imported()
    packages = {name.partition(".")[0] for name in found["modules"]}
    assert "tfloss" in packages
    assert not packages & HEAVY
    # The time of a busy machine may be too long by chance.
    assert found["seconds"] < 0.2 or min(imported()["seconds"] for _ in range(2)) < 0.2


SOON = 1.5  # seconds, on a busy machine; an autotuner's thread sleeps for 2.5 s by then


class Times(Hook):
    every = Every(steps=1)

    def after_step(self, step):
        self.last = time.monotonic()


@pytest.mark.promise(31)
@pytest.mark.usefixtures("autotuner")
def test_train_and_evaluate_return_when_their_last_step_is_done():
    """The autotuner's thread sleeps for longer and longer; closing an iterator waits for it."""
    x = np.ones(64, np.float32)
    data = tf.data.Dataset.from_tensor_slices({"x": x}).repeat().shuffle(64)
    data = data.map(lambda b: b, num_parallel_calls=tf.data.AUTOTUNE).batch(8)
    data = data.prefetch(tf.data.AUTOTUNE)
    assert data.options().autotune.enabled is None  # as a user's pipeline comes
    seen = Times()
    trainer = tfloss.Trainer(
        Line(), keras.optimizers.SGD(0.0), hooks=[seen], default_hooks=False, steps_per_call=1
    )
    began = time.monotonic()
    while time.monotonic() - began < 3.0:  # so long that the thread sleeps for seconds
        trainer.train(data, trainer.step + 200)
    ended = time.monotonic()
    assert ended - seen.last < SOON
    mean = {"mean": tfloss.metric(keras.metrics.Mean(), lambda batch, out: out["y"])}
    trainer.evaluate(data.take(3), mean)  # traces
    began = time.monotonic()
    trainer.evaluate(data.take(3), mean)
    assert time.monotonic() - began < SOON
    began = time.monotonic()
    del trainer, seen  # and with them the iterator
    assert time.monotonic() - began < SOON
