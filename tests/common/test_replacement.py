"""Files and directories are the old or the new ones at every instant, and left-overs go away."""

import ast
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tfloss.common import replacement as module
from tfloss.common.replacement import (
    delete,
    displaced,
    exchange,
    remove_leftovers,
    replace_file,
    replacement,
    set_aside,
)


@pytest.fixture(params=["exchange", "two renames"])
def way(request, monkeypatch):
    """How a directory takes the place of another one."""
    if request.param == "two renames":
        monkeypatch.setattr(module, "exchange", lambda one, other: False)
    return request.param


def make(path, content):
    path.mkdir()
    for name in ("a", "b"):
        (path / name).write_text(content)


def read(path):
    """The content of a directory; None if it is missing. An incomplete one is an error."""
    if not path.exists():
        return None
    contents = {name: (path / name).read_text() for name in os.listdir(path)}
    assert set(contents) == {"a", "b"} and len(set(contents.values())) == 1, contents
    return contents["a"]


def names(path):
    return sorted(os.listdir(path))


def replace(target, content):
    with replacement(target) as new:
        make(new.path, content)
        new.commit()


# Whole


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "a.json"
    replace_file(path, "old")
    replace_file(path, "new ä".encode())
    assert path.read_text(encoding="utf-8") == "new ä"
    assert names(tmp_path) == ["a.json"]


def test_permissions_are_kept_and_follow_the_umask(tmp_path):
    path = tmp_path / "a"
    before = os.umask(0o027)
    try:
        replace_file(path, "x")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o600)
        replace_file(path, "y")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        replace(tmp_path / "d", "x")
        assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o750
    finally:
        os.umask(before)


@pytest.mark.usefixtures("way")
def test_a_directory_is_created_replaced_and_deleted(tmp_path):
    target = tmp_path / "target"
    for content in ("first", "second"):
        replace(target, content)
        assert read(target) == content and names(tmp_path) == ["target"]
    delete(target)
    assert names(tmp_path) == []


@pytest.mark.usefixtures("way")
def test_without_a_commit_or_after_an_error_nothing_changes(tmp_path):
    target = tmp_path / "target"
    replace(target, "old")
    with replacement(target) as new:
        make(new.path, "new")
    with pytest.raises(FileNotFoundError), replacement(target) as new:
        new.commit()  # nothing was written
    assert read(target) == "old" and names(tmp_path) == ["target"]


def test_a_full_disk_leaves_the_old_content_and_no_temporary_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_text("old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, "new")
    assert path.read_text() == "old" and names(tmp_path) == ["a"]


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is a call of Linux")
def test_two_directories_are_exchanged(tmp_path):
    one, other = tmp_path / "1", tmp_path / "2"
    make(one, "1")
    make(other, "2")
    assert exchange(one, other) and (read(one), read(other)) == ("2", "1")
    with pytest.raises(FileNotFoundError):
        exchange(one, tmp_path / "missing")


# Killed and interrupted


def at_line(number, act):
    """A trace function that acts before the `number`-th line of the module is run."""
    left = [number]

    def trace(frame, event, argument):
        if frame.f_code.co_filename != module.__file__:
            return None
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                act()
        return trace

    return trace


def killed(number, function):
    """Runs a function in another process, killed at a line. Returns whether it was killed."""
    pid = os.fork()
    if not pid:
        try:
            sys.settrace(at_line(number, lambda: os.kill(os.getpid(), signal.SIGKILL)))
            function()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def every_line(function, check):
    """Kills a function at every line in turn, and checks after each."""
    number = 1
    while killed(number, function):
        check(number)
        number += 1
    assert number > 20  # it does have lines
    return number


def kill_the_replacement_of_a_directory(folder, way):
    target, seen = folder / "target", []
    make(target, "old")

    def check(number):
        now = read(target)
        if now is None:  # between two renames
            assert way == "two renames"
            assert read(displaced(folder)[target]) == "old"
        remove_leftovers(folder)
        assert names(folder) == ["target"], number
        assert now is None or read(target) == now
        seen.append(read(target))
        assert seen[-1] in ("old", "new")
        shutil.rmtree(target)
        make(target, "old")

    every_line(lambda: replace(target, "new"), check)
    assert seen[0] == "old" and seen[-1] == "new" and seen == sorted(seen, reverse=True)


def kill_the_replacement_of_a_file(folder, way):
    target, seen = folder / "a", []
    target.write_text("old")

    def check(number):
        seen.append(target.read_text())
        target.write_text("old")
        remove_leftovers(folder)
        assert names(folder) == ["a"], number

    every_line(lambda: replace_file(target, "new"), check)
    assert set(seen) == {"old", "new"} and seen == sorted(seen, reverse=True)


def kill_the_deletion_of_a_directory(folder, way):
    target, seen = folder / "target", []
    make(target, "old")

    def check(number):
        seen.append(read(target))
        remove_leftovers(folder)
        assert read(target) == seen[-1], "it came back"
        assert names(folder) == ["target"] * target.exists()
        if not target.exists():
            make(target, "old")

    every_line(lambda: delete(target), check)
    assert seen[0] == "old" and seen[-1] is None


@pytest.mark.parametrize(
    ("function", "way"),
    [
        (kill_the_replacement_of_a_directory, "exchange"),
        (kill_the_replacement_of_a_directory, "two renames"),
        (kill_the_replacement_of_a_file, "exchange"),
        (kill_the_deletion_of_a_directory, "exchange"),
    ],
)
def test_nothing_is_in_between_wherever_the_process_is_killed(tmp_path, function, way):
    """The checks run in a process without TensorFlow, which forks in a millisecond."""
    code = (
        "import os, runpy, sys; from pathlib import Path\n"
        "file, name, folder, way = sys.argv[1:]\n"
        "test = runpy.run_path(file)\n"
        "os.fsync = lambda handle: None\n"
        "if way == 'two renames': test['module'].exchange = lambda one, other: False\n"
        "test[name](Path(folder), way)"
    )
    command = [sys.executable, "-c", code, __file__, function.__name__, str(tmp_path), way]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("way")
def test_a_directory_is_whole_wherever_control_c_comes(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    target, seen = tmp_path / "target", []
    make(target, "old")

    def interrupt():
        sys.settrace(None)
        raise KeyboardInterrupt

    while True:
        sys.settrace(at_line(len(seen) + 1, interrupt))
        try:
            replace(target, "new")
        except KeyboardInterrupt:
            seen.append(read(target) or read(displaced(tmp_path)[target]))
        else:
            break
        finally:
            sys.settrace(None)
        for staging in tmp_path.glob(".*"):  # this process lives: only its end frees the lock
            if (staging / "earlier").exists() and not target.exists():
                os.replace(staging / "earlier", target)
            shutil.rmtree(staging)
        assert seen[-1] in ("old", "new")
        shutil.rmtree(target)
        make(target, "old")
    assert len(seen) > 20 and {"old", "new"} == set(seen)


# Left-overs


def left_over(directory, content="x"):
    """Leaves the staging directory of a process that was killed. Returns its path."""
    before = set(names(directory))
    pid = os.fork()
    if not pid:
        with replacement(directory / "target") as new:
            make(new.path, content)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    (name,) = set(names(directory)) - before
    return directory / name


def test_every_replacement_cleans_up_for_others(tmp_path):
    staging = left_over(tmp_path)
    assert (staging / "new/target/a").exists()
    replace_file(tmp_path / "other", "")
    assert names(tmp_path) == ["other"]


def test_what_a_live_process_prepares_stays(tmp_path):
    with replacement(tmp_path / "target") as new:
        make(new.path, "new")
        replace_file(tmp_path / "other", "")
        done = subprocess.run(
            [
                *(sys.executable, "-c"),
                "import sys; from pathlib import Path; from tfloss.common import replacement as r;"
                "r.remove_leftovers(Path(sys.argv[1]))",
                tmp_path,
            ]
        )
        assert done.returncode == 0
        new.commit()
    assert read(tmp_path / "target") == "new"


def test_only_what_tfloss_made_is_removed(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    make(elsewhere, "mine")
    folder = tmp_path / "folder"
    folder.mkdir()
    proven = left_over(folder)
    shutil.rmtree(proven)
    for name in (".target.0123456789abcdef.tfloss", ".tfloss", "target.tfloss", ".a.tmp"):
        make(folder / name, "mine")
    proven.symlink_to(elsewhere)
    other = left_over(folder)
    shutil.rmtree(other)
    other.write_text("mine")
    left = names(folder)
    remove_leftovers(folder)
    remove_leftovers(tmp_path / "missing")
    assert names(folder) == left and read(elsewhere) == "mine"


def test_a_link_in_a_left_over_is_not_followed(tmp_path):
    make(tmp_path / "mine", "mine")
    folder = tmp_path / "folder"
    folder.mkdir()
    staging = left_over(folder)
    (staging / "new/link").symlink_to(tmp_path / "mine")
    (staging / "link").symlink_to(tmp_path / "mine")
    remove_leftovers(folder)
    assert names(folder) == [] and read(tmp_path / "mine") == "mine"


def test_without_locks_nothing_is_removed(tmp_path, monkeypatch):
    def unsupported(handle, wait):
        raise OSError(95, "Operation not supported")

    staging = left_over(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "lock", unsupported)
        replace(tmp_path / "target", "new")
    with monkeypatch.context() as patch:  # Windows
        patch.setattr(module, "has_locks", lambda: False)
        replace(tmp_path / "target", "newer")
    assert read(tmp_path / "target") == "newer" and staging.exists()


def test_many_threads_replace_one_directory(tmp_path):
    target, failed = tmp_path / "target", []

    def work(content):
        try:
            for _ in range(20):
                replace(target, content)
                read(target)
        except FileNotFoundError:  # `read` met an exchange between two of its files
            pass
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=[content]) for content in "xyz"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not [e for e in failed if not isinstance(e, AssertionError)]
    assert read(target) in "xyz" and names(tmp_path) == ["target"]


# What somebody else wrote


def test_a_link_is_replaced_not_followed(tmp_path):
    victim, folder = tmp_path / "victim", tmp_path / "folder"
    victim.write_text("mine")
    make(folder, "mine")
    for link, of in (("a", victim), ("d", folder), ("e", folder)):
        (tmp_path / link).symlink_to(of)
    replace_file(tmp_path / "a", "new")
    replace(tmp_path / "d", "new")
    delete(tmp_path / "e")
    assert victim.read_text() == "mine" and read(folder) == "mine"
    assert (tmp_path / "a").read_text() == "new" and read(tmp_path / "d") == "new"
    assert names(tmp_path) == ["a", "d", "folder", "victim"]


def test_a_file_does_not_replace_a_directory(tmp_path):
    make(tmp_path / "d", "mine")
    with pytest.raises(IsADirectoryError, match="d'"):
        replace_file(tmp_path / "d", "new")
    assert read(tmp_path / "d") == "mine"


def test_a_copy_of_what_is_not_own_stays(tmp_path):
    path = tmp_path / "a.json"
    own = {"is_own": lambda old: old.startswith(b"own")}
    for content in ("mine", "own 1", "own 2", "own 2"):
        replace_file(path, content, **own)
    assert names(tmp_path) == ["a.json", "superseded.a.json"]
    assert (tmp_path / "superseded.a.json").read_text() == "mine"
    path.write_text("mine again")
    replace_file(path, "own 3", **own)
    assert (tmp_path / "superseded.1.a.json").read_text() == "mine again"


def test_what_is_set_aside_keeps_its_bytes_and_tensorboard_does_not_read_it(tmp_path):
    for content in "12":
        (tmp_path / "events.out.tfevents.1").write_text(content)
        set_aside(tmp_path / "events.out.tfevents.1")
    assert (tmp_path / "superseded.events.out.events.1").read_text() == "1"
    assert (tmp_path / "superseded.1.events.out.events.1").read_text() == "2"
    make(tmp_path / "d", "mine")
    set_aside(tmp_path / "d")
    assert read(tmp_path / "superseded.d") == "mine"


# Everywhere

CHANGES = {"rename", "renames", "rmtree", "unlink", "rmdir", "write_text", "write_bytes", "move"}
CHANGES |= {"mkstemp", "mkdtemp", "NamedTemporaryFile", "symlink_to", "hardlink_to", "copyfile"}
OF_OS = {"replace", "remove", "truncate", "link", "symlink"}
ALLOWED = {
    "app/examples.py": "copyfile: to where nothing is, or else nothing is copied",
    "checkpoint/files.py": "os.replace: a corrupt or later checkpoint is renamed",
    "checkpoint/manifest.py": "write_bytes: into a staging directory",
    "hooks/event_file.py": "os.truncate, unlink: of the new file, after an error",
    "saved_model/export_record.py": "write_text: into a staging directory",
    "trainer/workdir_lock.py": "os.truncate: of the open lock file, when it is known to be own",
}


def test_nothing_else_in_tfloss_replaces_or_deletes_files():
    """A new call belongs into this module, or needs its reason in ALLOWED."""
    root, found = Path(module.__file__).parents[1], {}
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                of_os = isinstance(node.func.value, ast.Name) and node.func.value.id == "os"
                if node.func.attr in CHANGES or (of_os and node.func.attr in OF_OS):
                    name = ("os." if of_os else "") + node.func.attr
                    found.setdefault(path.relative_to(root).as_posix(), set()).add(name)
    found.pop("common/replacement.py")
    assert {name: reason.partition(":")[0] for name, reason in ALLOWED.items()} == {
        name: ", ".join(sorted(calls)) for name, calls in found.items()
    }
