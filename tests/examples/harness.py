"""Runs an example as a user does: its train script, in processes of its own."""

import importlib.util
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfloss

ROOT = Path(__file__).parents[2]


def run(script: str, config: str, workdir: Path, *arguments: str) -> str:
    """What `examples/<script>` prints with `configs/<config>.py`; it must end well."""
    command = [sys.executable, str(ROOT / "examples" / script)]
    command += [f"--config={ROOT / 'configs' / config}.py", f"--workdir={workdir}", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-6_000:]
    return done.stdout


def train_resume_and_export(
    script: str, config: str, tmp_path: Path, overrides: Sequence[str]
) -> tuple[Path, dict[str, float]]:
    """Two steps on one replica; then on two replicas it goes on to step 4, evaluates, exports.

    Args:
      script: under `examples/`, such as "digits/train.py".
      config: a recipe's name.
      tmp_path: for what is written.
      overrides: flags that make it small: `--config.name=value`.

    Returns:
      The exported SavedModel of step 4, and the results that were printed (`test/...`).
    """
    workdir = tmp_path / "run"
    run(script, config, workdir, "--mode=train", "--max_steps=2", *overrides)
    two = ["--strategy=mirrored", "--replicas=2", "--max_steps=4"]
    printed = run(script, config, workdir, *two, *overrides)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = {row["step"] for row in rows if "losses/total" in row}
    assert steps == {2, 4}, steps  # it began at step 0 once, and went on from 2
    run(script, config, workdir, "--mode=export", *overrides)
    return workdir / "export_step_4", results(printed)


def results(printed: str) -> dict[str, float]:
    """The `test/name value` pairs of the line that a train script ends with."""
    words = printed.split()
    return {
        word: float(value)
        for word, value in zip(words, words[1:], strict=False)
        if word.startswith("test/")
    }


_LOAD = """
import json, sys
import tensorflow as tf
loaded = tf.saved_model.load(sys.argv[1])
inputs = {k: tf.zeros(shape, dtype) for k, (shape, dtype) in json.loads(sys.argv[2]).items()}
found = loaded.signatures["serving_default"](**inputs)
assert "tfloss" not in sys.modules, "the SavedModel needs more than TensorFlow"
print(json.dumps({k: v.shape.as_list() for k, v in found.items()}))
"""


def load_without_tfloss(
    path: Path, inputs: Mapping[str, tuple[Sequence[int], str]]
) -> dict[str, list[int]]:
    """The shapes that a SavedModel gives for zeros, in a process with TensorFlow alone.

    Args:
      path: the SavedModel.
      inputs: `{name: (shape, dtype)}`.
    """
    command = [sys.executable, "-c", _LOAD, str(path), json.dumps(inputs)]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=300)
    assert done.returncode == 0, done.stderr[-4_000:]
    return json.loads(done.stdout.splitlines()[-1])


def load(path: str) -> types.ModuleType:
    """A module of an example, such as "detector/model.py", under a name of its own."""
    name = "example_" + path.removesuffix(".py").replace("/", "_")
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train_a_little(
    make: Callable[[], keras.Model],
    data: tf.data.Dataset,
    strategy: tf.distribute.Strategy,
    *,
    steps: int = 3,
    **options: Any,
) -> tuple[dict[str, float], list[np.ndarray]]:
    """The last step's losses and the weights after some steps of gradient descent.

    Plain SGD, in which a wrong gradient shows; Adam would hide its size.
    """
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model, optimizer = make(), keras.optimizers.SGD(0.05)
    trainer = tfloss.Trainer(model, optimizer, strategy=strategy, log_every=1, **options)
    options_of_data = tf.data.Options()
    options_of_data.autotune.enabled = False  # closing the iterator would wait for its thread
    losses = trainer.train(data.with_options(options_of_data), steps).losses
    return {k: float(v) for k, v in losses.items()}, [w.numpy() for w in model.weights]


def assert_same(first: Any, second: Any, tolerance: float = 2e-5) -> None:
    """Two results of `train_a_little` agree, relative to the size of each."""
    assert set(first[0]) == set(second[0])
    for name, value in first[0].items():
        np.testing.assert_allclose(second[0][name], value, rtol=tolerance, err_msg=name)
    for one, other in zip(first[1], second[1], strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=tolerance * max(np.abs(one).max(), 1))
