"""One trainer at a time in a workdir, with real processes and real directories."""

import contextlib
import errno
import gc
import json
import os
import shutil
import signal
import socket
import time
import warnings

import keras
import pytest
import tensorflow as tf

import tfloss
from tests.fork import run_script, started_script
from tests.toys import Line
from tfloss.errors import WorkdirError, WorkdirInUseError
from tfloss.hooks import Every, Hook, OnSteps, SaveCheckpoint
from tfloss.trainer import workdir_lock as lock
from tfloss.trainer.workdir_lock import WorkdirLock

fcntl = pytest.importorskip("fcntl")

HOLD = """
import os, sys, time
from tfloss.trainer.workdir_lock import WorkdirLock
workdir, seconds, *fork = sys.argv[1:]
if float(seconds):
    os.setsid()  # so that the test can end its child, too
with WorkdirLock(workdir).training():
    if not fork or os.fork() == 0:
        print("held", flush=True)  # by the child, where there is one: it has begun by then
    time.sleep(float(seconds))
"""


@pytest.fixture
def hold_script(tmp_path_factory):
    """Writes the script of another process, in a folder of its own."""

    def write():
        script = tmp_path_factory.mktemp("hold") / "hold.py"
        script.write_text(HOLD)
        return script

    return write


@pytest.fixture
def holder(tmp_path, hold_script):
    """`holder(...)`: another process that holds the workdir; it is killed at the end."""
    with contextlib.ExitStack() as stack:

        def start(*arguments):
            script = hold_script()
            process = stack.enter_context(started_script(script, str(tmp_path), "60", *arguments))
            stack.callback(_kill_group, process.pid)
            out = script.with_name("out")
            while not (out.exists() and out.read_text() == "held\n"):
                assert process.is_alive()
                time.sleep(0.01)
            return process

        yield start


def _kill_group(pid):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def test_a_second_process_is_refused_and_told_who_it_is_and_since_when(tmp_path, holder):
    before = time.time()
    process = holder()
    with pytest.raises(WorkdirInUseError) as error, WorkdirLock(tmp_path).training():
        pytest.fail("two hold it")
    said = str(error.value)
    assert f"The workdir {tmp_path} is in use by another trainer (process {process.pid} on " in said
    assert f"on {socket.gethostname()}, since " in said and "another workdir" in said
    since = said.partition("since ")[2][:19]
    assert 0 <= time.mktime(time.strptime(since, "%Y-%m-%d %H:%M:%S")) - int(before) <= 60


def test_the_lock_of_a_killed_process_is_none(tmp_path, holder):
    process = holder()
    process.kill()
    process.join()
    with WorkdirLock(tmp_path).training():
        assert str(process.pid) not in (tmp_path / ".lock").read_text()


def test_a_forked_child_does_not_keep_the_lock_of_its_dead_parent(tmp_path, holder):
    process = holder("fork")
    with pytest.raises(WorkdirInUseError), WorkdirLock(tmp_path).training():
        pass
    process.kill()  # its child sleeps on
    process.join()
    with WorkdirLock(tmp_path).training():
        pass


def test_in_one_process_one_after_the_other(tmp_path):
    with WorkdirLock(tmp_path).training():
        with pytest.raises(WorkdirInUseError, match="another Trainer of this process"):
            with WorkdirLock(tmp_path).training():
                pass
        with (
            pytest.raises(WorkdirInUseError),
            WorkdirLock(tmp_path).training(),
        ):  # the first still holds it
            pass
    with WorkdirLock(tmp_path).training():
        pass
    with pytest.raises(KeyError), WorkdirLock(tmp_path).training():
        raise KeyError
    with WorkdirLock(tmp_path).training():
        pass


def test_a_message_without_what_the_file_should_say(tmp_path):
    with WorkdirLock(tmp_path).training():
        (tmp_path / ".lock").write_text("{")
        with pytest.raises(
            WorkdirInUseError, match="in use by another trainer. Wait until it ends"
        ):
            with WorkdirLock(tmp_path).training():
                pass


def test_a_file_system_without_locks_warns_once(tmp_path, monkeypatch):
    def refuse(handle, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock, "_warned", set())
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match=r"\.lock can't be locked \(No locks available\)"):
        with WorkdirLock(tmp_path).training():
            pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with WorkdirLock(tmp_path).training():
            pass


def test_other_errors_are_raised(tmp_path):
    with pytest.raises(WorkdirError, match="is gone"), WorkdirLock(tmp_path / "nowhere").training():
        pass


# What a trainer does


class Call(Hook):
    """Calls a function at one step, after it was logged."""

    def __init__(self, step, function):
        self.every, self._function = OnSteps(step), function

    def after_step(self, step):
        self._function()


def trainer(workdir, **options):
    hooks = [*options.pop("hooks", []), SaveCheckpoint(Every(steps=5))]
    options = {"jit": False, "log_every": 1, "seed": 1, "steps_per_call": 1, **options}
    return tfloss.Trainer(
        Line(), keras.optimizers.SGD(0.1), workdir=workdir, hooks=hooks, **options
    )


DATA = tf.data.Dataset.from_tensors({"x": tf.zeros([2])}).repeat()


def logged(workdir):
    return [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").open()]


def test_trainers_that_take_turns_do_not_double_the_logs(tmp_path):
    first, second = trainer(tmp_path), trainer(tmp_path)
    first.train(DATA, 10)
    assert second.train(DATA, 20).step == 20  # a notebook makes its trainer again
    with pytest.raises(WorkdirInUseError, match=r"has taken over .* Use the newer trainer"):
        first.train(DATA, 30)
    second.train(DATA, 30)
    assert logged(tmp_path) == list(range(1, 31))


def test_a_trainer_keeps_its_workdir_from_other_processes_between_its_calls(tmp_path, hold_script):
    def another():
        return run_script(hold_script(), str(tmp_path), "0")

    mine = trainer(tmp_path)
    assert another().returncode == 0  # it has not trained yet
    mine.train(DATA, 2)
    refused = another()
    assert f"(process {os.getpid()} on " in refused.stderr and "A notebook keeps" in refused.stderr
    del mine
    gc.collect()
    assert another().returncode == 0


def test_a_trainer_that_trains_is_not_taken_over(tmp_path):
    said = []

    def nested():
        with pytest.raises(WorkdirInUseError, match="another Trainer of this process") as error:
            trainer(tmp_path).train(DATA, 30)
        said.append(error.value)

    trainer(tmp_path, hooks=[Call(3, nested)]).train(DATA, 6)
    assert len(said) == 1 and logged(tmp_path) == list(range(1, 7))


def rename(workdir):
    workdir.rename(workdir.with_name("moved"))


def replace(workdir):
    """As a script does that synchronises directories: the copy has the lock file, too."""
    shutil.copytree(workdir, workdir.with_name("copy"))
    rename(workdir)
    workdir.with_name("copy").rename(workdir)


@pytest.mark.parametrize("damage", [rename, shutil.rmtree, replace])
@pytest.mark.parametrize(("step", "seconds"), [(7, 0.0), (10, 1e9)])  # found by the loop, the save
def test_a_workdir_that_is_lost_stops_the_run(damage, step, seconds, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_SECONDS", seconds)
    workdir = tmp_path / "run"
    mine = trainer(workdir, hooks=[Call(step, lambda: damage(workdir))])
    before = rf"The workdir {workdir} was renamed, deleted or replaced"
    with pytest.raises(WorkdirError, match=before) as error:
        mine.train(DATA, 100)
    assert mine.step == (8 if step == 7 else 10)
    found = sorted(path.name for path in tmp_path.iterdir())
    if damage is shutil.rmtree:
        assert found == []  # nothing was written into nowhere
        return
    moved = tmp_path / "moved"
    assert f"Its files are now in {moved}." in str(error.value)
    assert sorted(os.listdir(moved / "checkpoints")) == ["step_00000005"]
    assert logged(moved) == list(range(1, step + 1))
    if damage is replace:  # the copy is as it was
        assert logged(workdir) == list(range(1, step + 1))
    # The message's advice works.
    assert trainer(moved).train(DATA, 12).step == 12
    assert logged(moved) == list(range(1, 13))


def test_a_workdir_that_is_lost_between_two_calls(tmp_path):
    workdir = tmp_path / "run"
    mine = trainer(workdir)
    shutil.rmtree(workdir)
    with pytest.raises(WorkdirError, match=r"The workdir .*run is gone\. Make the Trainer again"):
        mine.train(DATA, 3)
    mine = trainer(workdir)
    mine.train(DATA, 3)
    rename(workdir)
    with pytest.raises(WorkdirError, match="was renamed, deleted or replaced"):
        mine.train(DATA, 6)


def test_a_lock_file_that_is_deleted_is_made_again(tmp_path, holder):
    mine = trainer(tmp_path)
    mine.train(DATA, 2)
    (tmp_path / ".lock").unlink()
    mine.train(DATA, 4)
    with pytest.raises(AssertionError):  # it says nothing, because it is refused
        holder()
    (tmp_path / ".lock").unlink()
    process = holder()
    with pytest.raises(WorkdirInUseError, match=f"taken over|process {process.pid}"):
        mine.train(DATA, 6)


def test_without_locks_the_name_in_the_file_counts(tmp_path, monkeypatch):
    def refuse(handle, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock, "_SECONDS", 0.0)
    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(lock, "_warned", {errno.ENOLCK})
    other = trainer(tmp_path)
    mine = trainer(tmp_path, hooks=[Call(3, lambda: other.train(DATA, 5))])
    with pytest.raises(WorkdirInUseError, match="has taken over"):
        mine.train(DATA, 10)
    assert mine.step <= 4


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("target")])
def test_a_lock_file_that_is_none(make, tmp_path):
    make(tmp_path / ".lock")
    (tmp_path / "target").write_text("a file of somebody")
    with pytest.raises(WorkdirError, match=r"\.lock can't be opened: it is (a link|not a regular)"):
        trainer(tmp_path).train(DATA, 3)
    assert (tmp_path / "target").read_text() == "a file of somebody"


def test_a_lock_file_of_another_program_is_not_overwritten(tmp_path):
    path = tmp_path / ".lock"
    path.write_text("mine")
    with pytest.raises(WorkdirError, match=r"\.lock can't be opened: tfloss did not write it"):
        trainer(tmp_path).train(DATA, 3)
    assert path.read_text() == "mine"
    path.write_bytes(bytes(100))  # what a power failure can leave
    assert trainer(tmp_path).train(DATA, 3)
