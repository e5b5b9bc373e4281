"""Files are replaced whole or not at all, and locked by one process at a time."""

import os
import stat
import subprocess
import sys
import threading

import pytest

from tfloss.common.files import locked_file, replace_directory, replace_file, sync


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "a.json"
    replace_file(path, "old")
    replace_file(path, "new ä".encode())
    assert path.read_text(encoding="utf-8") == "new ä"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_permissions_are_kept_and_follow_the_umask(tmp_path):
    path = tmp_path / "a"
    before = os.umask(0o027)
    try:
        replace_file(path, "x")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o600)
        replace_file(path, "y")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_a_failure_leaves_the_old_content_and_no_temporary_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_text("old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def _directory(path, content):
    path.mkdir()
    (path / "file").write_text(content)
    return path


def test_a_directory_is_replaced_and_the_old_one_is_kept_aside(tmp_path):
    new, target, aside = tmp_path / "new", tmp_path / "target", tmp_path / "aside"
    replace_directory(_directory(new, "first"), target, aside)
    assert [p.name for p in tmp_path.iterdir()] == ["target"]
    replace_directory(_directory(new, "second"), target, aside)
    assert (target / "file").read_text() == "second"
    assert (aside / "file").read_text() == "first" and not new.exists()


def test_a_directory_that_cannot_be_replaced_keeps_its_content(tmp_path):
    target, aside = _directory(tmp_path / "target", "old"), tmp_path / "aside"
    with pytest.raises(FileNotFoundError):
        replace_directory(tmp_path / "missing", target, aside)
    assert (target / "file").read_text() == "old" and not aside.exists()


KILLED = """
import os, sys
from pathlib import Path
from tfloss.common.files import replace_file
os.replace = lambda *names: os._exit(9)  # killed after the write, before the rename
replace_file(Path(sys.argv[1]), "new")
"""


def test_a_process_that_is_killed_before_the_rename_leaves_the_old_content(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, path])
    assert done.returncode == 9
    assert path.read_text() == "old"


def test_a_link_at_a_guessable_name_is_not_followed(tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "a"
    victim.write_text("mine")
    for name in (".a.partial", f".a.{os.getpid()}", ".a.tmp"):
        (tmp_path / name).symlink_to(victim)
    replace_file(path, "new")
    assert victim.read_text() == "mine"


def test_a_locked_file_makes_others_wait(tmp_path):
    path, order = tmp_path / "lock", []

    def other():
        with locked_file(path):
            order.append("other")

    thread = threading.Thread(target=other)
    with locked_file(path):
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


def test_sync_names_what_is_missing(tmp_path):
    sync(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "missing")
