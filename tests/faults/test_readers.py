"""Processes that read checkpoints beside a trainer that saves and deletes them quickly."""

import concurrent.futures
import re
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest

import tfloss
from tests.fork import run_script, started_script
from tfloss.checkpoint import CheckpointDirectory, listing, load_manifest
from tfloss.checkpoint.compare import compare
from tfloss.distribute.launch import free_ports
from tfloss.errors import CheckpointDeletedError, CheckpointError

ROOT = Path(__file__).parents[2]


TRAINER = """
import sys
import keras, tensorflow as tf
import tfloss

class Model(keras.Model):  # its weights are all equal to the number of completed steps
    def build(self, shape):
        self.w = self.add_weight(shape=[200_000], initializer="zeros")

    def call(self, x, training=False):
        return {"negative": -tf.reduce_sum(self.w)} if training else self.w

def trainer_in(workdir):
    save = tfloss.hooks.SaveCheckpoint(tfloss.Every(steps=1), keep_last=1)
    options = dict(jit=False, default_hooks=False, log_every=1000, hooks=[save])
    return tfloss.Trainer(Model(), keras.optimizers.SGD(1.0), workdir=workdir, **options)

def data():
    return tf.data.Dataset.from_tensors(tf.zeros([1, 1])).repeat()

if __name__ == "__main__":
    trainer_in(sys.argv[1]).train(data(), 10**6)
"""
here = types.ModuleType("trainer_script")
exec(TRAINER, here.__dict__)


def model_of():
    model = here.Model()
    model.build([1, 1])
    return model


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A directory in which a trainer saves at each step and keeps one checkpoint."""
    path = tmp_path_factory.mktemp("run")
    script = path.with_name("script.py")
    script.write_text(TRAINER)
    with started_script(script, str(path), environment={"PYTHONPATH": str(ROOT)}) as process:
        until = time.monotonic() + 120
        while not CheckpointDirectory(path / "checkpoints").steps():
            assert process.is_alive() and time.monotonic() < until
            time.sleep(0.1)
        yield path
        assert process.is_alive()


WORKER = """
import os, sys
sys.path.insert(0, os.path.dirname(sys.argv[0]))
import keras, numpy as np
import script, tfloss
strategy = tfloss.make_strategy("multi_worker")
with strategy.scope():
    options = dict(strategy=strategy, default_hooks=False, jit=False)
    trainer = tfloss.Trainer(script.Model(), workdir=sys.argv[1], **options)
for _ in range(int(sys.argv[2])):
    step = trainer.restore(script.data())
    print(step, *np.unique(trainer.model.w.numpy()), flush=True)
"""


def steps_of(read, seconds=2.0, least=40):
    """Calls a function again and again, and returns its results: numbers that never fall."""
    found, until = [], time.monotonic() + seconds
    while time.monotonic() < until or len(found) < least:
        found.append(read())
    assert found == sorted(found) and found[-1] > found[0]
    return found


def test_the_newest_weights_are_loaded_each_time(workdir):
    model = model_of()

    def read():
        assert len(tfloss.load_weights(model, workdir).loaded) == 1
        values = np.unique(model.w.numpy())
        assert values.shape == (1,)  # of one checkpoint, not of two
        return int(values[0])

    steps_of(read)


def test_a_trainer_restores_the_newest_checkpoint_each_time(workdir, caplog):
    trainer = here.trainer_in(workdir)

    def read():
        step = trainer.restore(here.data())
        assert trainer.step == step and set(np.unique(trainer.model.w.numpy())) == {float(step)}
        return step

    steps_of(read)
    assert "corrupt" not in caplog.text


def test_the_list_has_valid_checkpoints_only(workdir, capsys):
    def read():
        listing.print_checkpoints(listing.find_checkpoints(workdir))
        header, *rows = capsys.readouterr().out.splitlines()
        assert header.split()[:4] == ["step", "age", "size", "state"] and rows
        assert all(re.fullmatch(r"\d+ +\d+ s +[\d.]+ MB +valid", row) for row in rows), rows
        return int(rows[-1].split()[0])

    steps_of(read)


def test_the_command_lists_them(workdir):
    command = [sys.executable, "-m", "tfloss.cli", "checkpoints", str(workdir)]
    for _ in range(3):
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (run.returncode, run.stderr) == (0, "")
        assert "valid" in run.stdout


def test_a_given_checkpoint_was_deleted_and_is_not_corrupt(workdir):
    """Reads one and the same checkpoint until it is gone."""
    directory = CheckpointDirectory(workdir / "checkpoints")
    model = model_of()
    seen = set()

    def read_until_deleted(read):
        path = directory.latest()
        with pytest.raises(CheckpointError) as error:
            while True:
                read(path)
        seen.add(type(error.value))
        assert "corrupt" not in str(error.value)

    for _ in range(20):
        read_until_deleted(load_manifest)
        read_until_deleted(lambda path: compare(path, path))
        read_until_deleted(lambda path: directory.restore(path, {"model/w": model.w}))
    assert CheckpointDeletedError in seen


@pytest.mark.slow
def test_three_hundred_reads_beside_a_trainer(workdir, caplog):
    """Another trainer is restored, weights are loaded, and the checkpoints are listed, in turn."""
    trainer = here.trainer_in(workdir)

    def read():
        step = trainer.restore(here.data())
        assert set(np.unique(trainer.model.w.numpy())) == {float(step)}
        assert len(tfloss.load_weights(trainer.model, workdir).loaded) == 1
        assert np.unique(trainer.model.w.numpy()).shape == (1,)
        assert listing.find_checkpoints(workdir)
        return step

    assert len(steps_of(read, seconds=0.0, least=100)) == 100
    assert "corrupt" not in caplog.text


@pytest.mark.slow
def test_two_workers_restore_the_same_checkpoints_beside_a_trainer(workdir):
    script = workdir.with_name("worker.py")
    script.write_text(WORKER)
    addresses = ",".join(f"127.0.0.1:{port}" for port in free_ports(2))

    def run(rank):
        environment = {
            "TFLOSS_WORKERS": addresses,
            "JOB_COMPLETION_INDEX": str(rank),
            "PYTHONPATH": str(ROOT),
        }
        return run_script(script, str(workdir), "40", environment=environment, timeout=300)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        found = list(pool.map(run, range(2)))
    for done in found:
        assert done.returncode == 0, done.stderr
    lines = [line.split() for line in found[0].stdout.splitlines() if line[0].isdigit()]
    assert found[0].stdout == found[1].stdout and len(lines) == 40
    steps = [int(step) for step, value in lines if float(step) == float(value)]
    assert len(steps) == 40 and steps == sorted(steps) and steps[-1] > steps[0]
