"""The directory of a run: what is written once it trains, and what may be in its way."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import keras
import pytest
import tensorflow as tf

import tfloss
from tests.toys import Line
from tfloss.checkpoint import load_manifest
from tfloss.errors import CheckpointError, WorkdirError
from tfloss.hooks import ExportBest
from tfloss.trainer import workdir


def test_what_describes_a_run_is_written_at_its_first_step(tmp_path):
    written = []
    workdir.write_when_trained(tmp_path, lambda: written.append("first"))
    workdir.write_when_trained(tmp_path, lambda: written.append("second"))
    workdir.write_deferred(None)
    workdir.write_deferred(tmp_path.parent)
    assert written == []
    workdir.write_deferred(tmp_path / "fold_1")  # a trainer in a directory below
    workdir.write_deferred(tmp_path)
    assert written == ["second"]


def test_links_at_names_that_can_be_guessed_are_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    name = f".tfloss_write_test_{os.getpid()}_{socket.gethostname()}"
    (tmp_path / name).symlink_to(victim)
    workdir.writable(tmp_path)
    assert victim.read_text() == "mine" and (tmp_path / name).is_symlink()


def test_what_a_killed_process_left_is_removed(tmp_path):
    code = (
        "import os, pathlib, sys; from tfloss.common import replacement as r\n"
        "with r.replacement(pathlib.Path(sys.argv[1]) / 'config.json'): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path])
    assert len(list(tmp_path.iterdir())) == 1
    workdir.writable(tmp_path)
    assert not list(tmp_path.iterdir())


# What is in the way is said before the first step


def deep(path):
    path.write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")


def huge(path):
    with path.open("wb") as file:
        file.truncate(2**40)


def link(target):
    return lambda path: path.symlink_to(target)


IN_THE_WAY = [
    ("checkpoints", Path.touch, "checkpoints must be a directory, but it is a file. Move it away"),
    ("checkpoints", os.mkfifo, "checkpoints must be a directory, but it is a FIFO"),
    ("checkpoints", link("/mnt/disk"), "link to /mnt/disk, which doesn't exist. Is its disk mount"),
    ("checkpoints", link("checkpoints"), "checkpoints can't be read: Too many levels of symbolic"),
    ("config.json", lambda path: path.write_text("{"), "config.json is not a config that tfloss"),
    ("config.json", lambda path: path.write_text("[1]"), "config that .*it is no JSON object"),
    ("config.json", deep, "config.json is not a config that .* nested too deeply"),
    ("config.json", huge, "config.json has .* bytes, but a part of them was never written"),
    ("config.json", link("/dev/zero"), "config.json must be a file, but it is a device"),
    ("config.json", os.mkfifo, "config.json must be a file, but it is a FIFO. Move it away"),
    ("config.json", Path.mkdir, "config.json must be a file, but it is a directory"),
    ("engine.json", Path.mkdir, "engine.json must be a file, but it is a directory"),
    ("engine.json", os.mkfifo, "engine.json must be a file, but it is a FIFO"),
    ("metrics.jsonl", Path.mkdir, "metrics.jsonl must be a file, but it is a directory"),
    ("metrics.jsonl", os.mkfifo, "metrics.jsonl must be a file, but it is a FIFO"),
    (
        "metrics.jsonl",
        link("/dev/full"),
        "metrics.jsonl is a link, and tfloss doesn't write",
    ),
    ("metrics.jsonl", huge, "metrics.jsonl has .* bytes, but a part of them was never written"),
    ("train", Path.touch, "train must be a directory, but it is a file"),
    ("train", link("/mnt/disk"), "train is a link to /mnt/disk, which doesn't exist"),
    ("nonfinite", Path.touch, "nonfinite must be a directory, but it is a file"),
    ("export.best.json", os.mkfifo, "export.best.json must be a file, but it is a FIFO"),
    (".lock", Path.mkdir, r"\.lock can't be opened: Is a directory"),
]


def train(directory, steps=3, **options):
    made = tfloss.Trainer(
        Line(), keras.optimizers.SGD(0.1), workdir=directory, jit=False, **options
    )
    made.train(tf.data.Dataset.from_tensors({"x": tf.ones([2])}).repeat(), steps)
    return made


@pytest.mark.parametrize(("name", "damage", "said"), IN_THE_WAY)
def test_what_is_in_the_way_is_said_before_the_first_step(name, damage, said, tmp_path):
    damage(tmp_path / name)
    before = os.lstat(tmp_path / name)[:2]  # mode and inode
    with pytest.raises((WorkdirError, CheckpointError), match=said) as error:
        train(tmp_path, hooks=[ExportBest("losses/total")])
    assert str(tmp_path) in str(error.value)
    assert os.lstat(tmp_path / name)[:2] == before
    assert {path.name for path in tmp_path.iterdir()} <= {name, ".lock"}  # nothing was written


@pytest.mark.parametrize("make", [Path.touch, os.mkfifo, link("/mnt/disk")])
def test_a_workdir_that_is_none(make, tmp_path):
    make(tmp_path / "run")
    with pytest.raises(WorkdirError, match=f"workdir '{tmp_path}/run' can't be written to"):
        train(tmp_path / "run")


@pytest.mark.parametrize("damage", ["{", '{"mode": "loop"}', "[" * 100_000, "[]"])
def test_a_broken_choice_of_the_mode_is_measured_again(damage, tmp_path):
    (tmp_path / "engine.json").write_text(damage)
    assert train(tmp_path).step == 3


def test_a_config_that_breaks_later_is_said_by_the_next_call(
    tmp_path,
):
    (tmp_path / "config.json").write_text('{"a": 1}')
    made = train(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WorkdirError, match="not a config"):
        made.train(tf.data.Dataset.from_tensors({"x": tf.ones([2])}).repeat(), 6)
    made.save_checkpoint()
    assert load_manifest(made.checkpoints.at(3))["extra"]["config"] == {"a": 1}


@pytest.mark.parametrize("damage", [Path.touch, os.mkfifo, link("/mnt/disk"), Path.mkdir])
def test_a_checkpoint_that_is_none_is_skipped_and_stays(damage, tmp_path, capsys):
    train(tmp_path, 4)
    damage(tmp_path / "checkpoints" / "step_00000006")
    assert train(tmp_path, 6).step == 6
    assert "Skipping checkpoint" in capsys.readouterr().err
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["damaged_00000006", "step_00000004", "step_00000006"]


def test_a_lone_checkpoint_on_a_disk_that_is_not_mounted_is_no_reason_to_start_again(tmp_path):
    train(tmp_path, 4)
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000004")
    (tmp_path / "checkpoints" / "step_00000004").symlink_to("/mnt/disk/step_00000004")
    with pytest.raises(CheckpointError, match="None of the checkpoints .* is valid"):
        train(tmp_path, 6)


def test_what_lies_where_a_killed_run_leaves_its_parts_is_no_hindrance(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("of somebody")
    train(tmp_path / "run", 4)
    place = tmp_path / "run" / "checkpoints"
    (place / ".step_00000006.0123456789abcdef.tmp").symlink_to(outside)
    os.mkfifo(place / ".partial_6")
    assert train(tmp_path / "run", 6).checkpoints.valid_steps() == [4, 6]
    assert len(list(place.iterdir())) == 4
    assert (outside / "file").read_text() == "of somebody"
