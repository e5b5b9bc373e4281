"""A run on a disk that fills up, and has room again: with a real small file system."""

import contextlib
import errno
import json
import os
import resource
import shutil
import subprocess
import warnings

import keras
import pytest
import tensorflow as tf

import tfloss
from tests.toys import Line
from tfloss.checkpoint import CheckpointDirectory
from tfloss.errors import CheckpointWriteError, WorkdirError
from tfloss.hooks import Evaluate, Every, ExportBest, Hook, OnSteps, Profile, SaveCheckpoint
from tfloss.hooks.write_errors import is_write_error, survives
from tfloss.trainer.workdir import write_when_trained


class Call(Hook):
    """Calls a function at each of some steps, before anything else does."""

    def __init__(self, **functions):
        self._functions = {int(name[1:]): one for name, one in functions.items()}
        self.every = OnSteps(*self._functions)

    def after_step(self, step):
        self._functions[step]()


class Padding(Hook):
    """Logs much, so that the logs, too, soon need another page of the disk."""

    every = Every(steps=1)

    def after_step(self, step):
        self.trainer.log(step, {"padding/" + 2000 * "x": 0.0})


class Rising:
    """A metric that is better at each evaluation."""

    mode = "max"
    value = 0

    def reset(self):
        self.value += 1

    def update(self, batch, predictions): ...

    def result(self):
        return float(self.value)


@pytest.fixture
def disk(tmp_path):
    """A file system of one megabyte."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(disk):
    with contextlib.suppress(OSError), (disk / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1024) * 4)


DATA = tf.data.Dataset.from_tensors({"x": tf.zeros([2])}).repeat()


def make(workdir, *hooks, on_error="continue", **options):
    return tfloss.Trainer(
        Line(),
        keras.optimizers.SGD(0.1),
        workdir=workdir,
        hooks=[
            *hooks,
            Padding(),
            Evaluate(DATA.take(1), {"rising": Rising()}, every=Every(steps=2)),
            ExportBest("val/rising"),
            SaveCheckpoint(Every(steps=2), keep_last=None, on_error=on_error),
        ],
        **{"jit": False, "log_every": 1, "steps_per_call": 1, **options},
    )


def logged(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    return [line["step"] for line in lines if "losses/total" in line]


def drawn(workdir):
    found = []
    for path in sorted((workdir / "train").glob("*tfevents*")):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():  # whole records only
            event = tf.compat.v1.Event.FromString(record)
            found += [event.step for v in event.summary.value if v.tag == "Losses/total"]
    return found


@pytest.mark.parametrize("background", [False, True])
def test_every_writer_survives_a_full_disk_and_goes_on_when_there_is_room(
    disk, background, monkeypatch
):
    monkeypatch.setattr(tfloss.hooks.TensorBoard, "__init__", flushing_at_each_step)
    workdir = disk / "run"
    config = workdir / "config.json"
    at_full = {}

    def look():
        at_full["logs"], at_full["best"] = (
            logged(workdir),
            (workdir / "export.best.json").read_text(),
        )

    def fill_now():
        if trainer.writer is not None:  # whose failure would make room again
            trainer.writer.wait()
        fill(disk)

    disturb = Call(_5=fill_now, _11=look, _12=lambda: (disk / "ballast").unlink())
    trainer = make(workdir, disturb, async_checkpoint=background)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert trainer.train(DATA, 20).step == 20
    messages = [str(one.message) for one in warned if one.category is UserWarning]
    said = [message.partition(" can't be written")[0] for message in messages]
    # Each once, in whatever order they met it.
    checkpoint = f"The checkpoint {workdir}/checkpoints/step_00000006"
    expected = [checkpoint, "The curves", "The export of the best model", "The metrics file"]
    assert sorted(said) == expected
    assert at_full["logs"] == at_full["logs"][:1] + list(range(2, len(at_full["logs"]) + 1))
    assert json.loads(at_full["best"])["step"] == 4
    # Nothing of the logs is lost; of checkpoints and exports what was due while the disk was full.
    assert logged(workdir) == drawn(workdir) == list(range(1, 21))
    found = CheckpointDirectory(workdir / "checkpoints")
    assert found.valid_steps() == found.steps() and set(found.steps()) >= {2, 4, 16, 18, 20}
    # A write of step 10 in the background may end when there is room again.
    assert not ({6, 8} if background else {6, 8, 10}) & set(found.steps())
    assert json.loads((workdir / "export.best.json").read_text())["step"] == 20
    assert not config.exists()
    # And the run can be resumed.
    assert make(workdir).train(DATA, 22).step == 22
    assert logged(workdir) == drawn(workdir) == list(range(1, 23))


def flushing_at_each_step(self, logdir=None):
    REAL_INIT(self, logdir, flush_seconds=5.0)
    self.every = Every(steps=1)


REAL_INIT = tfloss.hooks.TensorBoard.__init__


def test_a_disk_that_is_full_at_the_first_step(disk):
    workdir = disk / "run"
    trainer = make(workdir, Call(_7=lambda: (disk / "ballast").unlink()))
    write_when_trained(workdir, lambda: (workdir / "config.json").write_text("{}" * 5000))
    fill(disk)
    with pytest.warns(UserWarning) as warned:
        trainer.train(DATA, 10)
    assert sum("The config of the run can't be written" in str(w.message) for w in warned) == 1
    assert (workdir / "config.json").stat().st_size == 10_000
    assert logged(workdir) == drawn(workdir) == list(range(1, 11))
    assert trainer.checkpoints.valid_steps() == [8, 10]


def test_what_is_missing_at_the_end_is_told(disk):
    workdir = disk / "run"
    trainer = make(workdir, Call(_5=lambda: fill(disk)))
    with pytest.warns(UserWarning) as warned:
        trainer.train(DATA, 8)
    said = " | ".join(str(one.message) for one in warned)
    for missing in (
        "Training ended without a checkpoint of step 8",
        f"events of {workdir}/train",
        f"lines of {workdir}/metrics.jsonl, which could not be written",
        "The best model, of step 8, could not be exported",
    ):
        assert missing in said
    assert "No space left on device" in said


def test_a_resume_on_a_full_disk_logs_no_step_twice(disk):
    """To cut what is after the checkpoint takes no room on the disk."""
    workdir = disk / "run"
    make(workdir).train(DATA, 5)  # the end saves step 5
    shutil.rmtree(workdir / "checkpoints" / "step_00000005")
    fill(disk)
    with pytest.warns(UserWarning, match=r"Training ended without \d+ lines of .*metrics.jsonl"):
        make(workdir).train(DATA, 8)
    steps = logged(workdir)
    assert 4 <= len(steps) < 8 and steps == list(range(1, len(steps) + 1))
    (disk / "ballast").unlink()
    make(workdir).train(DATA, 8)
    assert logged(workdir) == drawn(workdir) == list(range(1, 9))


def test_without_continue_the_first_write_that_fails_ends_the_run(disk):
    trainer = make(disk / "run", Call(_5=lambda: fill(disk)), on_error="stop")
    with pytest.raises(OSError, match="No space left on device"):
        trainer.train(DATA, 100)
    assert trainer.step < 40


def test_a_limit_on_the_size_of_files_is_survived_too(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))

    trainer = make(tmp_path / "run", Call(_5=limit(0), _9=limit(limits[0])))
    try:
        with pytest.warns(UserWarning, match="File too large"):
            trainer.train(DATA, 12)
    finally:
        limit(limits[0])()
    assert logged(tmp_path / "run") == drawn(tmp_path / "run") == list(range(1, 13))
    assert trainer.checkpoints.valid_steps()[-1] == 12


class Terminal:
    """A stream on a full disk."""

    def isatty(self):
        return False

    def write(self, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def flush(self): ...


def test_the_output_of_the_run_may_be_on_the_full_disk(tmp_path):
    progress = tfloss.hooks.Progress(stream=Terminal())
    with pytest.warns(UserWarning, match="The progress line can't be written"):
        assert make(tmp_path, progress).train(DATA, 4).step == 4
    with pytest.raises(OSError, match="No space left"):
        make(tmp_path, tfloss.hooks.Progress(stream=Terminal()), on_error="stop").train(DATA, 6)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), True),
        (PermissionError(), True),
        (CheckpointWriteError("step_1 can't be written"), True),
        (RuntimeError("Can't decrement id ref count (errno = 28, No space left on device)"), True),
        (tf.errors.ResourceExhaustedError(None, None, "a/b; No space left on device"), True),
        (tf.errors.ResourceExhaustedError(None, None, "OOM when allocating a tensor"), False),
        (WorkdirError("the workdir is gone"), False),
        (ValueError("a bug"), False),
        (KeyError("a bug"), False),
    ],
    ids=repr,
)
def test_which_errors_are_those_of_the_disk(error, expected):
    assert is_write_error(error) is expected
    outer = RuntimeError("export failed")
    outer.__cause__ = error
    assert is_write_error(outer) is expected


def test_one_hook_decides_for_all():
    assert survives([Profile(1, 2), SaveCheckpoint(on_error="continue")])
    assert not survives([Profile(1, 2), SaveCheckpoint()])
