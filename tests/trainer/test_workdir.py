"""One trainer at a time in a workdir, with real processes."""

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import time
import warnings

import pytest

from tfloss.errors import WorkdirInUseError
from tfloss.trainer import workdir as lock

fcntl = pytest.importorskip("fcntl")

HOLD = """
import os, sys, time
from tfloss.trainer.workdir import locked
with locked(sys.argv[1]):
    fork = sys.argv[2:] == ["fork"]
    if not fork or os.fork() == 0:
        print("held", flush=True)  # by the child, where there is one: it has begun by then
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """`holder(...)`: another process that holds the workdir; it is killed at the end."""
    started = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, tmp_path, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def test_a_second_process_is_refused_and_told_who_it_is_and_since_when(tmp_path, holder):
    before = time.time()
    process = holder()
    with pytest.raises(WorkdirInUseError) as error, lock.locked(tmp_path):
        pytest.fail("two hold it")
    said = str(error.value)
    assert f"The workdir {tmp_path} is in use by another trainer (process {process.pid} on " in said
    assert f"on {socket.gethostname()}, since " in said and "another workdir" in said
    since = said.partition("since ")[2][:19]
    assert 0 <= time.mktime(time.strptime(since, "%Y-%m-%d %H:%M:%S")) - int(before) <= 60


def test_the_lock_of_a_killed_process_is_none(tmp_path, holder):
    process = holder()
    process.send_signal(signal.SIGKILL)
    process.wait()
    with lock.locked(tmp_path):
        assert str(process.pid) not in (tmp_path / ".lock").read_text()


def test_a_forked_child_does_not_keep_the_lock_of_its_dead_parent(tmp_path, holder):
    process = holder("fork")
    with pytest.raises(WorkdirInUseError), lock.locked(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)  # its child sleeps on
    process.wait()
    with lock.locked(tmp_path):
        pass


def test_in_one_process_one_after_the_other(tmp_path):
    with lock.locked(tmp_path):
        with pytest.raises(WorkdirInUseError, match="another Trainer of this process"):
            with lock.locked(tmp_path):
                pass
        with pytest.raises(WorkdirInUseError), lock.locked(tmp_path):  # the first still holds it
            pass
    with lock.locked(tmp_path):
        pass
    with pytest.raises(KeyError), lock.locked(tmp_path):
        raise KeyError
    with lock.locked(tmp_path):
        pass


def test_a_message_without_what_the_file_should_say(tmp_path):
    with lock.locked(tmp_path):
        (tmp_path / ".lock").write_text("{")
        with pytest.raises(
            WorkdirInUseError, match="in use by another trainer. Wait until it ends"
        ):
            with lock.locked(tmp_path):
                pass


def test_a_file_system_without_locks_warns_once(tmp_path, monkeypatch):
    def refuse(handle, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock, "_warned", set())
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match=r"\.lock can't be locked \(No locks available\)"):
        with lock.locked(tmp_path):
            pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with lock.locked(tmp_path):
            pass


def test_other_errors_are_raised(tmp_path):
    with pytest.raises(FileNotFoundError), lock.locked(tmp_path / "nowhere"):
        pass


def test_what_describes_a_run_is_written_at_its_first_step(tmp_path):
    written = []
    lock.write_when_trained(tmp_path, lambda: written.append("first"))
    lock.write_when_trained(tmp_path, lambda: written.append("second"))
    lock.write_deferred(None)
    lock.write_deferred(tmp_path.parent)
    assert written == []
    lock.write_deferred(tmp_path / "fold_1")  # a trainer in a directory below
    lock.write_deferred(tmp_path)
    assert written == ["second"]
