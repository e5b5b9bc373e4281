"""The directories of checkpoints: complete or absent, whatever happens."""

import contextlib
import logging
import os
import random
import re
import resource
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import tensorflow as tf

from tests.fork import started_script
from tfloss.checkpoint import CheckpointDirectory, CheckpointFiles, manifest
from tfloss.checkpoint.files import supersede_later
from tfloss.common import replacement
from tfloss.errors import CheckpointWriteError

FILES = ["manifest.json", "more.bin", "variables.data-00000-of-00001", "variables.index"]


def saved(path, *steps):
    """A directory with checkpoints of these steps, each of all FILES."""
    directory = CheckpointDirectory(path)
    for step in steps:
        files = {"more.bin": bytes(range(100))}
        directory.save(step, {"v": tf.Variable([float(step)] * 100)}, {"n": step}, files=files)
    return directory


class Messages(logging.LoggerAdapter):
    """A logger that keeps its messages."""

    def __init__(self):
        super().__init__(logging.getLogger("tfloss"), {})
        self.messages = []

    def log(self, level, msg, *args, **kwargs):
        self.messages.append(msg)


def damage(file, how):
    content = bytearray(file.read_bytes())
    if how == "delete":
        file.unlink()
        return
    if how == "flip":
        content[len(content) // 3] ^= 0x01
    file.write_bytes(
        {"empty": b"", "truncate": content[:-1], "zero": bytes(len(content))}.get(how, content)
    )


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


def test_directories_with_other_names_are_ignored(tmp_path):
    directory = CheckpointDirectory(tmp_path)
    path = directory.save(1, {"v": tf.Variable(1.0)})
    for name in ("step_00000002_backup", "step_3", "step_000000004", "best_00000005", "notes"):
        shutil.copytree(path, tmp_path / name)
    assert directory.steps() == [1] and directory.latest() == path
    directory.save(6, {"v": tf.Variable(1.0)})
    assert len(list(tmp_path.iterdir())) == 7


# Corrupt checkpoints


@pytest.mark.parametrize("how", ["delete", "empty", "truncate", "zero", "flip"])
@pytest.mark.parametrize("file", FILES)
def test_a_corrupt_checkpoint_is_skipped_logged_and_kept(file, how, tmp_path):
    path = saved(tmp_path, 1, 2).at(2)
    assert sorted(p.name for p in path.iterdir()) == FILES
    damage(path / file, how)
    directory, logger = CheckpointDirectory(tmp_path), Messages()
    assert directory.newest_valid(logger) == directory.at(1)
    (line,) = logger.messages
    assert line.startswith(f"Skipping checkpoint {path}, which is corrupt: {file} ")
    assert line.endswith("It stays as it is; the next one is tried.")
    expected = (
        "is missing"
        if how == "delete"
        else "was changed after it was written: its checksum differs"
    )
    if how in ("empty", "truncate") and file != "manifest.json":
        size = {"more.bin": 100}.get(file) or f"{os.path.getsize(directory.at(1) / file):,}"
        expected = f"bytes, but {size} were written"
    assert expected in line
    assert directory.steps() == [1, 2] and directory.valid_steps() == [1]


def test_an_additional_file_is_allowed_and_a_renamed_checkpoint_is_corrupt(tmp_path):
    directory = saved(tmp_path, 1, 2)
    (directory.at(1) / "notes.txt").write_text("")
    assert directory.problem(1) is None
    (tmp_path / "step_00000002").rename(tmp_path / "step_00000003")
    assert directory.problem(3) == "manifest.json belongs to step 2"


def test_files_of_somebody_else_are_never_deleted(tmp_path):
    directory = saved(tmp_path, 1, 2)
    (directory.at(1) / "notes.txt").write_text("mine")
    (directory.at(1) / "more").mkdir()
    (directory.at(1) / "more/link").symlink_to("/elsewhere")
    with pytest.raises(OSError, match="it holds more, notes.txt, which tfloss did not write there"):
        directory.delete(1)
    (directory.at(1) / "more.bin").write_bytes(b"")  # corrupt: the notes stay beside it
    saved(tmp_path, 1)
    (aside,) = tmp_path.glob("damaged_*")
    assert (aside / "notes.txt").read_text() == "mine"
    (directory.at(2) / "notes.txt").write_text("mine")
    (directory.at(2) / "more").mkdir()
    (directory.at(2) / "more/link").symlink_to("/elsewhere")
    saved(tmp_path, 2)  # valid: the notes are in the new one
    assert directory.problem(2) is None and sorted(p.name for p in directory.at(2).iterdir()) == [
        "manifest.json",
        "more",
        *FILES[1:2],
        "notes.txt",
        *FILES[2:],
    ]
    assert os.readlink(directory.at(2) / "more/link") == "/elsewhere"
    assert (directory.at(2) / "notes.txt").read_text() == "mine"


def test_directories_that_look_like_left_overs_stay(tmp_path):
    names = [".partial_5", ".partial_notes", ".replaced_00000007", ".replaced_mine"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes").write_text("mine")
    assert saved(tmp_path, 5, 6).steps() == [5, 6]
    assert [(tmp_path / name / "notes").read_text() for name in names] == ["mine"] * 4


def test_a_link_in_place_of_a_checkpoint_is_deleted_not_what_it_leads_to(tmp_path):
    elsewhere = saved(tmp_path / "other", 1).at(1)
    directory = CheckpointDirectory(tmp_path / "c")
    directory.path.mkdir()
    directory.at(1).symlink_to(elsewhere)
    assert directory.valid_steps() == [1]
    directory.delete(1)
    assert not list(directory.path.iterdir()) and len(list(elsewhere.iterdir())) == len(FILES)
    directory.at(1).symlink_to(elsewhere)
    saved(directory.path, 1)
    assert not directory.at(1).is_symlink() and directory.problem(1) is None
    assert len(list(elsewhere.iterdir())) == len(FILES)


def test_without_a_valid_checkpoint_there_is_no_newest_valid_one(tmp_path):
    logger = Messages()
    assert CheckpointFiles(tmp_path / "c").newest_valid(logger) is None and not logger.messages
    directory = saved(tmp_path, 1, 2)
    for step in (1, 2):
        damage(directory.at(step) / "more.bin", "flip")
    (tmp_path / "step_00000003").mkdir()
    assert directory.newest_valid(logger) is None
    assert [re.findall(r"step_0*(\d+)", line) for line in logger.messages] == [["3"], ["2"], ["1"]]


def test_a_corrupt_checkpoint_is_renamed_when_its_step_is_saved_again(tmp_path):
    directory = saved(tmp_path, 1)
    for _ in range(2):
        damage(directory.at(1) / "more.bin", "flip")
        saved(tmp_path, 1)
    names = ["damaged_00000001", "damaged_00000001_1", "step_00000001"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert [(tmp_path / name / "more.bin").read_bytes()[33] for name in names] == [32, 32, 33]
    assert directory.steps() == [1] and directory.problem(1) is None


def test_later_checkpoints_are_renamed_and_kept(tmp_path):
    for number in ("", "_1"):
        directory = saved(tmp_path, 1, 2, 3)
        damage(directory.at(3) / "variables.index", "delete")
        names = [path.name for path in supersede_later(directory, 1)]
        assert names == [f"superseded_00000002{number}", f"superseded_00000003{number}"]
        assert directory.steps() == [1] and len(list((tmp_path / names[0]).iterdir())) == 4
    assert supersede_later(directory, 1) == []
    saved(tmp_path, 4)
    assert (tmp_path / "superseded_00000002").is_dir()  # no clean-up takes it


def test_a_valid_checkpoint_is_read_only_once(tmp_path, monkeypatch):
    saved(tmp_path, 1, 2)
    directory, read = CheckpointDirectory(tmp_path), []
    monkeypatch.setattr(
        "tfloss.checkpoint.files.find_problem", lambda path, step, **_: read.append(step)
    )
    assert directory.valid_steps() == [1, 2] and directory.valid_steps() == [1, 2]
    directory.save(3, {"v": tf.Variable(1.0)})
    assert directory.valid_steps() == [1, 2, 3] and read == [1, 2]


def test_only_files_that_were_touched_are_read_to_list_the_valid_ones(tmp_path, monkeypatch):
    saved(tmp_path, 1, 2, 3, 4)
    at, read, checksum = CheckpointDirectory(tmp_path).at, [], manifest.file_checksum
    damage(at(2) / "more.bin", "flip")
    (at(3) / "more.bin").touch()
    damage(at(4) / "more.bin", "delete")
    monkeypatch.setattr(manifest, "file_checksum", lambda path: read.append(path) or checksum(path))
    assert CheckpointDirectory(tmp_path).valid_steps() == [1, 3]
    assert read == [at(2) / "more.bin", at(3) / "more.bin"]


def test_checkpoints_without_modification_times_are_read(tmp_path, monkeypatch):
    """Earlier versions wrote such ones."""
    entry = manifest._entry
    without = {"bytes", "sha256"}
    monkeypatch.setattr(
        manifest, "_entry", lambda path: {k: v for k, v in entry(path).items() if k in without}
    )
    directory = saved(tmp_path, 1, 2)
    damage(directory.at(2) / "more.bin", "flip")
    assert CheckpointDirectory(tmp_path).valid_steps() == [1]


# Killed


@pytest.fixture
def kill_at(monkeypatch):
    """`kill_at(n)`: the n-th rename from now on doesn't happen, nor does anything after it."""

    def set_up(number):
        original, calls = os.replace, []
        monkeypatch.setattr(replacement, "exchange", lambda one, other: False)
        for clean_up in ("_discard_content", "_dissolve"):
            monkeypatch.setattr(replacement, clean_up, lambda *paths: None)

        def replace(*paths):
            calls.append(paths)
            if len(calls) == number:
                raise SystemExit
            original(*paths)

        monkeypatch.setattr(os, "replace", replace)

    return set_up


def test_a_kill_before_the_rename_keeps_the_previous_checkpoint(tmp_path, kill_at, monkeypatch):
    directory, variables = CheckpointDirectory(tmp_path), {"v": tf.Variable(1.0)}
    directory.save(1, variables)
    kill_at(1)
    with pytest.raises(SystemExit):
        directory.save(2, variables)
    monkeypatch.undo()
    assert directory.steps() == [1]
    partial, valid = sorted(p.name for p in tmp_path.iterdir())
    assert partial.startswith(".step_00000002.") and valid == "step_00000001"
    directory.save(3, variables)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000001", "step_00000003"]


@pytest.mark.parametrize("rename", [1, 2])
def test_a_kill_while_replacing_keeps_the_old_checkpoint(rename, tmp_path, kill_at, monkeypatch):
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


def test_a_kill_after_replacing_keeps_the_new_checkpoint(tmp_path, monkeypatch):
    directory, variable = CheckpointDirectory(tmp_path), tf.Variable(1.0)
    directory.save(1, {"v": variable}, {"n": 1})
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
    directory.save(1, {"v": variable}, {"n": 2})
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 2 and directory.steps() == [1]
    assert directory.restore(directory.at(1), {"v": variable}) == {"n": 2}
    directory.delete(1)  # neither of them comes back
    assert directory.steps() == [] and not list(tmp_path.iterdir())


def test_a_kill_while_deleting_still_deletes(tmp_path, monkeypatch):
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
    assert events[0] == tmp_path.name  # which got "c"
    assert set(events[1:4]) == files
    assert events[4:] == ["step_00000001", "rename", "c"]


KILLED = """
import sys, time
import tensorflow as tf
from tfloss.checkpoint import BackgroundWriter, CheckpointDirectory
directory, variable = CheckpointDirectory(sys.argv[1]), tf.Variable(tf.zeros([250_000]))
writer = BackgroundWriter() if sys.argv[2] == "background" else None
for step in range((directory.steps() or [0])[-1] + 1, 10_000):
    variable.assign(tf.fill([250_000], float(step)))
    directory.save(step, {"v": variable}, {"n": step}, files={"n": b"%d" % step}, background=writer)
    for old in directory.steps()[:-2]:
        directory.delete(old)
    print(time.monotonic(), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["at once", "background"])
def test_after_a_kill_at_any_moment_all_checkpoints_are_valid(how, tmp_path):
    rng, newest = random.Random(0), 0
    script, out = tmp_path / "killed.py", tmp_path / "out"
    script.write_text(KILLED)
    directory = CheckpointDirectory(tmp_path / "checkpoints")
    for _ in range(10):
        out.write_text("")
        saves = rng.randint(3, 6)
        with started_script(script, str(tmp_path / "checkpoints"), how) as process:
            while out.read_text().count("\n") < saves:
                assert process.is_alive(), (tmp_path / "err").read_text()
                time.sleep(0.001)
            before, after = map(float, out.read_text().split()[saves - 2 : saves])
            time.sleep(rng.uniform(0.0, after - before))  # at any moment of the next save
            process.kill()
        assert [directory.problem(step) for step in directory.steps()] == [None] * len(
            directory.steps()
        )
        variable = tf.Variable(tf.zeros([250_000]))
        extra = directory.restore(directory.latest(), {"v": variable})
        assert extra == {"n": directory.steps()[-1]}
        # In the background, the last of these saves may be in progress.
        assert (variable.numpy() == extra["n"]).all() and extra["n"] >= newest + saves - 1
        newest = extra["n"]


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
        with pytest.raises(CheckpointWriteError, match=f"{place}.*Permission denied"):
            directory.save(2, variables)
    finally:
        os.seteuid(user)
        place.chmod(0o755)
    assert directory.steps() == [1]
    directory.restore(directory.at(1), variables)
    shutil.rmtree(place)


def test_a_file_with_the_name_of_the_directory_is_an_error(tmp_path):
    (tmp_path / "c").write_text("")
    with pytest.raises(CheckpointWriteError, match=r"File exists \(.*/c\)\. .* There is no valid"):
        CheckpointDirectory(tmp_path / "c").save(1, {"v": tf.Variable(1.0)})


@pytest.mark.parametrize("step", [1, 2])
def test_a_write_that_exceeds_the_size_limit_is_an_error(step, tmp_path):
    directory, variable = CheckpointDirectory(tmp_path), tf.Variable(tf.ones([100_000]))
    directory.save(1, {"v": variable})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(CheckpointWriteError, match=f"{step} can't be written: File too large"):
            directory.save(step, {"v": variable})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]  # and the room is given back
    directory.restore(directory.at(1), {"v": variable})


@contextlib.contextmanager
def tiny_disk(path, megabytes):
    """A file system of its own; the test is left out where none can be mounted."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize("rubbish", [b"", bytes(600_000)])  # room for no values, or no files
def test_a_disk_that_fills_up(rubbish, tmp_path):
    with tiny_disk(tmp_path / "disk", 2):
        variable = tf.Variable(tf.fill([125_000], 1.0))  # 0.5 MB
        directory = CheckpointDirectory(tmp_path / "disk" / "c")
        directory.save(1, {"v": variable})
        directory.save(2, {"v": variable})
        with pytest.raises(CheckpointWriteError) as error:
            for step in (3, 4, 5):
                directory.save(step, {"v": variable}, files={"rubbish": rubbish})
        last = directory.steps()[-1]
        assert str(error.value).startswith(
            f"The checkpoint {tmp_path}/disk/c/step_{last + 1:08d} can't be written: "
            "No space left on device"
        )
        assert " MB left. The newest valid checkpoint is " in str(error.value)
        assert str(error.value).endswith(f"{directory.at(last)}.")
        assert not list(directory.path.glob(".*"))  # the half-written one makes room again
        assert directory.newest_valid(logger := Messages()) == directory.at(last)
        assert not logger.messages
        directory.delete(1)
        directory.save(9, {"v": variable})
        assert directory.problem(9) is None


def test_a_deleted_directory_is_created_again(tmp_path):
    directory = saved(tmp_path / "run" / "c", 1)
    shutil.rmtree(tmp_path / "run")
    directory.save(2, {"v": tf.Variable(1.0)})
    assert directory.steps() == [2] == directory.valid_steps()
