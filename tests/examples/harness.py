"""Runs an example as a user does: its train script, in processes of its own."""

import importlib.util
import json
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfloss
from tests.fork import run_script

ROOT = Path(__file__).parents[2]


def run(script: str, config: str, workdir: Path, *arguments: str) -> str:
    """Runs `examples/SCRIPT` with `configs/CONFIG.py` and returns what it prints."""
    flags = [f"--config={ROOT / 'configs' / config}.py", f"--workdir={workdir}", *arguments]
    path = {"PYTHONPATH": str(ROOT)}
    done = run_script(ROOT / "examples" / script, *flags, environment=path)
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-6_000:]
    return done.stdout


def train_resume_and_export(
    script: str, config: str, tmp_path: Path, overrides: Sequence[str], steps: int = 1
) -> tuple[Path, dict[str, float]]:
    """Trains on one replica, resumes on two, evaluates and exports, in three processes.

    Args:
      script: The script's path under `examples/`, such as "digits/train.py".
      config: The recipe's name.
      tmp_path: A folder for all files that are written.
      overrides: Flags that make the run small: `--config.name=value`.
      steps: Updates of each of the two training runs.

    Returns:
      The exported SavedModel, and the results that the script printed (`val/...` or
      `test/...`).
    """
    workdir, last = tmp_path / "run", 2 * steps
    run(script, config, workdir, "--mode=train", f"--max_steps={steps}", *overrides)
    two = ["--strategy=mirrored", "--replicas=2", f"--max_steps={last}"]
    printed = run(script, config, workdir, *two, *overrides)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    logged = [row["step"] for row in rows if "losses/total" in row]
    assert logged == [steps, last]  # the second run resumed; it didn't start again at step 0
    run(script, config, workdir, "--mode=export", *overrides)
    return workdir / f"export_step_{last}", results(printed)


def results(printed: str) -> dict[str, float]:
    """The `val/name value` or `test/name value` pairs of the line that a train script ends with."""
    (line,) = (line for line in printed.splitlines() if line.startswith(("val/", "test/")))
    words = line.split()
    return {k: float(v) for k, v in zip(words[::2], words[1::2], strict=True)}


def load_without_tfloss(
    path: Path, inputs: Mapping[str, tuple[Sequence[int], str]]
) -> dict[str, list[int]]:
    """Runs a SavedModel on zeros, in a process that has not imported tfloss.

    Args:
      path: The SavedModel.
      inputs: The shape and dtype of each input.

    Returns:
      The shape of each output.
    """
    done = run_script(Path(__file__).parent / "load_saved_model.py", str(path), json.dumps(inputs))
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
