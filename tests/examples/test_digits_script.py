"""The digits example keeps its promises."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

ROOT = Path(__file__).parents[2]


def _load(name):
    path = ROOT / "examples" / "digits" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"digits_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pictures_are_moved_a_little_about_their_centre():
    move = _load("input").move
    image = np.zeros([500, 8, 8, 1], np.float32)
    image[:, 3:5, 3:5] = 1.0  # a square in the middle: turning leaves it there
    batch = {"image": tf.constant(image), "label": tf.range(500)}

    moved = move(batch, tf.constant([1, 2], tf.int64))
    again = move(batch, tf.constant([1, 2], tf.int64))
    other = move(batch, tf.constant([1, 3], tf.int64))

    pixels = moved["image"].numpy()[..., 0]
    mass = pixels.sum((1, 2))
    np.testing.assert_allclose(mass, 4.0, atol=0.3)  # nothing leaves the picture
    for axis in (1, 2):
        others = 3 - axis
        centre = (pixels.sum(others) * np.arange(8)).sum(-1) / mass
        assert 0.4 < np.abs(centre - 3.5).max() < 0.6
        assert abs(centre.mean() - 3.5) < 0.05
    np.testing.assert_array_equal(moved["label"], np.arange(500))
    np.testing.assert_array_equal(moved["image"], again["image"])
    assert not np.array_equal(moved["image"], other["image"])


def test_the_model_needs_no_label_to_predict():
    model = _load("model").Classifier(width=4)

    predictions = model({"image": tf.zeros([3, 8, 8, 1])}, training=False)

    assert list(predictions) == ["probabilities"]
    np.testing.assert_allclose(tf.reduce_sum(predictions["probabilities"], -1), 1.0, rtol=1e-6)


def _train(tmp_path, *arguments):
    script = str(ROOT / "examples" / "digits" / "train.py")
    recipe = f"--config={ROOT / 'configs' / 'digits.py'}"
    command = [sys.executable, script, recipe, f"--workdir={tmp_path / 'run'}"]
    command += [f"--config.data_dir={tmp_path / 'data'}", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Variant folder" not in done.stderr and "eagerly" not in done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_it_reaches_98_percent_and_is_done_then(tmp_path):
    _train(tmp_path)
    again = _train(tmp_path)

    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    values = [json.loads(line) for line in lines]
    accuracy = [value["val/accuracy"] for value in values if "val/accuracy" in value]
    assert accuracy[-1] >= 0.98
    assert "step 1000 is already reached" in again
    exported = tf.saved_model.load(str(tmp_path / "run" / "export"))
    (probabilities,) = exported.signatures["serving_default"](image=tf.zeros([2, 8, 8, 1])).values()
    assert probabilities.shape == (2, 10)


@pytest.mark.slow
def test_two_replicas_train_and_the_other_modes_use_what_they_left(tmp_path):
    _train(tmp_path, "--mode=train", "--strategy=mirrored", "--replicas=2", "--max_steps=300")
    assert not (tmp_path / "run" / "export").exists()

    assert "test/accuracy 0.9" in _train(tmp_path, "--mode=eval")
    _train(tmp_path, "--mode=export")
    assert (tmp_path / "run" / "export_step_300" / "saved_model.pb").exists()
    assert not (tmp_path / "run" / "export").exists()  # the best weights' place
