"""What is saved, what is refused, and what comes back."""

import platform
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.test_memory import resident
from tfloss.checkpoint import (
    CheckpointDirectory,
    load_file,
    load_manifest,
    load_values,
    named_variables,
)
from tfloss.errors import CheckpointError


def test_saving_a_step_again_replaces_it(tmp_path):
    directory, variable = CheckpointDirectory(tmp_path), tf.Variable(1.0)
    directory.save(1, {"v": variable})
    variable.assign(2.0)
    directory.save(1, {"v": variable}, {"n": 2})
    variable.assign(0.0)
    assert directory.restore(directory.at(1), {"v": variable}) == {"n": 2}
    assert variable.numpy() == 2.0 and directory.steps() == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]


def test_saving_takes_no_second_copy_of_the_variables(tmp_path):
    variables = {str(i): tf.Variable(tf.ones([1000, 1000]) * i) for i in range(50)}  # 200 MB
    directory, most, done = CheckpointDirectory(tmp_path), [], threading.Event()
    directory.save(1, {"0": variables["0"]})
    before = resident()

    def watch():
        while not done.wait(0.002):
            most.append(resident(collect=False))

    thread = threading.Thread(target=watch)
    thread.start()
    directory.save(2, variables)
    done.set()
    thread.join()
    assert len(most) > 10
    assert max(most) - before < 100.0
    np.testing.assert_array_equal(load_values(directory.at(2), ["49"])["49"], 49.0)


# Won't be written


def _model():
    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="m")
            self.dense = keras.layers.Dense(1, name="d")
            self.bn = keras.layers.BatchNormalization(name="bn")
            self.mean = keras.metrics.Mean(name="mean")
            self.lowest = tf.Variable(np.inf)

        def call(self, x):
            return self.bn(self.dense(x))

    model = Model()
    model(tf.ones([1, 1]))
    return model


@pytest.mark.parametrize("name", ["d/kernel", "bn/moving_mean"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_are_not_finite_are_not_saved(name, value, tmp_path):
    directory, variables = CheckpointDirectory(tmp_path), named_variables(_model())
    variable = variables[f"m/{name}"]
    variable.assign(np.full(variable.shape, value))
    with pytest.raises(CheckpointError, match=f"step 2: NaN .* values in 'm/{name}'"):
        directory.save(2, variables)
    assert directory.steps() == []
    directory.save(2, variables, check_finite=False)


def test_slots_that_are_not_finite_are_not_saved_whatever_their_precision(tmp_path):
    slots = {"good": keras.Variable(1.0), "bad": keras.Variable([np.nan], dtype="bfloat16")}
    with pytest.raises(CheckpointError, match="NaN or infinite values in 'bad'"):
        CheckpointDirectory(tmp_path).save(2, slots)


def test_metrics_and_raw_variables_may_be_infinite(tmp_path):
    model = _model()  # with an infinite tf.Variable
    model.mean.update_state(np.nan)
    path = CheckpointDirectory(tmp_path).save(1, named_variables(model))
    values = load_values(path, load_manifest(path)["variables"])
    assert [name for name, one in values.items() if np.isinf(one).any()] == ["m/lowest"]


def test_saving_no_variables_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="No variables to save at step 2"):
        CheckpointDirectory(tmp_path).save(2, {})


def test_what_json_cannot_hold_is_named(tmp_path):
    extra = {"hooks": {"Stop": {"best": [1.0, np.float32(2)]}}}
    message = r"extra\['hooks'\]\['Stop'\]\['best'\]\[1\] is a float32"
    with pytest.raises(CheckpointError, match=message):
        CheckpointDirectory(tmp_path).save(2, {"v": tf.Variable(1.0)}, extra)
    assert not list(tmp_path.iterdir())


# More files


def test_more_files_come_back_as_they_were_saved(tmp_path):
    files = {"position.json": b'{"at": 3}', "noise.bin": bytes(range(256)), "empty": b""}
    path = CheckpointDirectory(tmp_path).save(1, {"v": tf.Variable(1.0)}, files=files)
    assert {name: load_file(path, name) for name in files} == files
    assert load_file(path, "other") is None
    (path / "noise.bin").write_bytes(bytes(256))
    with pytest.raises(CheckpointError, match=f"{path} is corrupt: noise.bin was changed"):
        load_file(path, "noise.bin")
    (path / "position.json").unlink()
    with pytest.raises(CheckpointError, match="position.json is missing"):
        load_file(path, "position.json")


@pytest.mark.parametrize("name", ["manifest.json", "variables.index", "a/b", "../a", ".hidden", ""])
def test_invalid_file_names_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match="the name must be a plain file name"):
        CheckpointDirectory(tmp_path).save(1, {"v": tf.Variable(1.0)}, files={name: b""})


def test_a_manifest_says_what_it_was_made_with(tmp_path):
    variables = {"v": tf.Variable(tf.ones([2, 3], tf.bfloat16))}
    manifest = load_manifest(CheckpointDirectory(tmp_path).save(7, variables))
    assert manifest["step"] == 7
    assert manifest["variables"] == {"v": {"shape": [2, 3], "dtype": "bfloat16"}}
    assert manifest["versions"]["python"] == platform.python_version()
    assert manifest["versions"]["numpy"] == np.__version__


# Can't be read


@pytest.mark.parametrize("file", ["variables.index", "variables.data-00000-of-00001"])
@pytest.mark.parametrize("how", ["delete", "empty", "truncate", "zero", "flip"])
def test_a_corrupt_checkpoint_restores_nothing(file, how, tmp_path):
    directory, variables = CheckpointDirectory(tmp_path), {}
    for name in "abc":
        variables[name] = tf.Variable(np.arange(100.0))
    path = directory.save(1, variables)
    for variable in variables.values():
        variable.assign(tf.zeros([100], variable.dtype))
    damaged = path / file
    content = bytearray(damaged.read_bytes())
    if how == "delete":
        damaged.unlink()
    else:
        content[len(content) // 2] ^= 0xFF
        changed = {
            "empty": b"",
            "truncate": content[: len(content) // 2],
            "zero": bytes(len(content)),
            "flip": content,
        }
        damaged.write_bytes(changed[how])
    with pytest.raises(CheckpointError, match=rf"{path}/variables\.\* can't be read.*corrupt"):
        directory.restore(path, variables)
    assert not any(v.numpy().any() for v in variables.values())
