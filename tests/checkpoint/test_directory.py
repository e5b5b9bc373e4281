"""The files: whole or absent, whatever happens."""

import json
import os
import resource
import shutil
import tempfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfloss.checkpoint import CheckpointDirectory, named_variables
from tfloss.errors import CheckpointError


def test_steps_latest_and_delete(tmp_path):
    directory = CheckpointDirectory(tmp_path / "c")
    assert directory.steps() == [] and directory.latest() is None
    for step in (100, 20, 3, 123_456_789):
        directory.save(step, {"v": tf.Variable(step)})
    assert directory.steps() == [3, 20, 100, 123_456_789]
    directory.delete(123_456_789)
    assert directory.latest() == tmp_path / "c" / "step_00000100"
    directory.delete(100)
    assert directory.steps() == [3, 20] and len(list((tmp_path / "c").iterdir())) == 2


def test_names_of_others_are_not_looked_at(tmp_path):
    directory = CheckpointDirectory(tmp_path)
    path = directory.save(1, {"v": tf.Variable(1.0)})
    for name in ("step_00000002_backup", "step_3", "step_000000004", "best_00000005", "notes"):
        shutil.copytree(path, tmp_path / name)
    assert directory.steps() == [1] and directory.latest() == path
    directory.save(6, {"v": tf.Variable(1.0)})
    assert len(list(tmp_path.iterdir())) == 7


def test_saving_a_step_again_replaces_it(tmp_path):
    directory, variable = CheckpointDirectory(tmp_path), tf.Variable(1.0)
    directory.save(1, {"v": variable})
    variable.assign(2.0)
    directory.save(1, {"v": variable}, {"n": 2})
    variable.assign(0.0)
    assert directory.restore(directory.at(1), {"v": variable}) == {"n": 2}
    assert variable.numpy() == 2.0 and directory.steps() == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]


# Killed


@pytest.fixture
def kill_at(monkeypatch):
    """`kill_at(n)`: the n-th rename from now on doesn't happen, nor does anything after it."""

    def set_up(number):
        original, calls = os.replace, []

        def replace(*paths):
            calls.append(paths)
            if len(calls) == number:
                raise SystemExit
            original(*paths)

        monkeypatch.setattr(os, "replace", replace)

    return set_up


def test_a_kill_before_the_rename_leaves_the_one_before(tmp_path, kill_at, monkeypatch):
    directory, variables = CheckpointDirectory(tmp_path), {"v": tf.Variable(1.0)}
    directory.save(1, variables)
    kill_at(1)
    with pytest.raises(SystemExit):
        directory.save(2, variables)
    monkeypatch.undo()
    assert directory.steps() == [1]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".partial_2", "step_00000001"]
    directory.save(3, variables)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000001", "step_00000003"]


@pytest.mark.parametrize("rename", [1, 2])
def test_a_kill_while_replacing_the_only_one_keeps_it(rename, tmp_path, kill_at, monkeypatch):
    directory, variable = CheckpointDirectory(tmp_path), tf.Variable(1.0)
    directory.save(1, {"v": variable}, {"n": 1})
    variable.assign(2.0)
    kill_at(rename)
    with pytest.raises(SystemExit):
        directory.save(1, {"v": variable}, {"n": 2})
    monkeypatch.undo()
    assert directory.steps() == [1] and directory.latest() == directory.at(1)
    assert directory.restore(directory.at(1), {"v": variable}) == {"n": 1}
    assert variable.numpy() == 1.0
    directory.save(2, {"v": variable})  # clears up, but not that one away
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000001", "step_00000002"]
    assert directory.restore(directory.at(1), {"v": variable}) == {"n": 1}


def test_a_kill_after_replacing_leaves_the_new_one(tmp_path, monkeypatch):
    directory, variable = CheckpointDirectory(tmp_path), tf.Variable(1.0)
    directory.save(1, {"v": variable}, {"n": 1})
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
    directory.save(1, {"v": variable}, {"n": 2})
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 2 and directory.steps() == [1]
    assert directory.restore(directory.at(1), {"v": variable}) == {"n": 2}
    directory.delete(1)  # neither of them comes back
    assert directory.steps() == [] and not list(tmp_path.iterdir())


def test_a_kill_while_deleting_is_a_deletion(tmp_path, monkeypatch):
    directory = CheckpointDirectory(tmp_path)
    directory.save(1, {"v": tf.Variable(1.0)})
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
    directory.delete(1)
    monkeypatch.undo()
    assert directory.steps() == []
    directory.save(1, {"v": tf.Variable(1.0)})
    directory.delete(1)
    assert not list(tmp_path.iterdir())


def test_everything_is_on_the_disk_before_the_rename_and_the_rename_after(tmp_path, monkeypatch):
    events = []
    sync, replace = os.fsync, os.replace

    def record_sync(handle):
        events.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        sync(handle)

    def record_replace(*paths):
        events.append("rename")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "replace", record_replace)
    CheckpointDirectory(tmp_path / "c").save(1, {"v": tf.Variable(1.0)})
    files = {"variables.index", "variables.data-00000-of-00001", "manifest.json"}
    assert set(events[:3]) == files
    assert events[3:] == [".partial_1", "rename", "c"]


# Can't be written


def test_a_directory_that_is_read_only():
    # Not tmp_path, which nobody but its owner may enter; root may write anywhere.
    place = Path(tempfile.mkdtemp())
    directory, variables = CheckpointDirectory(place), {"v": tf.Variable(1.0)}
    directory.save(1, variables)
    user = os.geteuid()
    place.chmod(0o555)
    try:
        if user == 0:
            os.seteuid(65534)
        with pytest.raises(PermissionError, match=str(place)):
            directory.save(2, variables)
    finally:
        os.seteuid(user)
        place.chmod(0o755)
    assert directory.steps() == [1]
    directory.restore(directory.at(1), variables)
    shutil.rmtree(place)


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "c").write_text("")
    with pytest.raises(OSError, match="c'"):
        CheckpointDirectory(tmp_path / "c").save(1, {"v": tf.Variable(1.0)})


@pytest.mark.parametrize("step", [1, 2])
def test_no_room_for_the_values(step, tmp_path):
    directory, variable = CheckpointDirectory(tmp_path), tf.Variable(tf.ones([100_000]))
    directory.save(1, {"v": variable})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match=f"Can't write .*.partial_{step}/variables"):
            directory.save(step, {"v": variable})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]  # and the room is given back
    directory.restore(directory.at(1), {"v": variable})


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
    with pytest.raises(CheckpointError, match=f"step 2: 'm/{name}' has NaN"):
        directory.save(2, variables)
    assert directory.steps() == []
    directory.save(2, variables, check_finite=False)


def test_slots_that_are_not_finite_are_not_saved_whatever_their_precision(tmp_path):
    slots = {"good": keras.Variable(1.0), "bad": keras.Variable([np.nan], dtype="bfloat16")}
    with pytest.raises(CheckpointError, match="'bad' has NaN"):
        CheckpointDirectory(tmp_path).save(2, slots)


def test_metrics_and_variables_of_ones_own_may_be_anything(tmp_path):
    model = _model()  # with an infinite tf.Variable
    model.mean.update_state(np.nan)
    CheckpointDirectory(tmp_path).save(1, named_variables(model))


def test_no_variables(tmp_path):
    with pytest.raises(CheckpointError, match="No variables to save at step 2"):
        CheckpointDirectory(tmp_path).save(2, {})


def test_what_json_cannot_hold_is_named(tmp_path):
    extra = {"hooks": {"Stop": {"best": [1.0, np.float32(2)]}}}
    message = r"extra\['hooks'\]\['Stop'\]\['best'\]\[1\] is a float32"
    with pytest.raises(CheckpointError, match=message):
        CheckpointDirectory(tmp_path).save(2, {"v": tf.Variable(1.0)}, extra)
    assert not list(tmp_path.iterdir())


# Can't be read


def test_what_is_not_a_checkpoint(tmp_path):
    path = tmp_path / "step_00000001"
    path.mkdir()
    assert CheckpointDirectory(tmp_path).steps() == []
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        CheckpointDirectory(tmp_path).restore(path, {})
    for text, message in (('{"format": 99}', "format 99"), ("[]", "format None"), ("{", "whole")):
        (path / "manifest.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            CheckpointDirectory(tmp_path).restore(path, {})


@pytest.mark.parametrize("file", ["variables.index", "variables.data-00000-of-00001"])
@pytest.mark.parametrize("how", ["delete", "empty", "truncate", "zero", "flip"])
def test_damaged_files_restore_nothing(file, how, tmp_path):
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
    with pytest.raises(CheckpointError, match=rf"{path}/variables\.\* can't be read.*damaged"):
        directory.restore(path, variables)
    assert not any(v.numpy().any() for v in variables.values())


@pytest.mark.parametrize(
    "damage",
    [
        lambda m: m.pop("variables"),
        lambda m: m.update(variables=[]),
        lambda m: m["variables"]["v"].pop("shape"),
        lambda m: m.pop("extra"),
        lambda m: m.update(extra=[]),
    ],
)
def test_a_manifest_that_lost_something_is_damaged(damage, tmp_path):
    variable = tf.Variable(1.0)
    path = CheckpointDirectory(tmp_path).save(1, {"v": variable})
    manifest = json.loads((path / "manifest.json").read_text())
    damage(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    variable.assign(2.0)
    with pytest.raises(CheckpointError, match="damaged. To go on from the one before, move"):
        CheckpointDirectory(tmp_path).restore(path, {"v": variable})
    assert variable.numpy() == 2.0
