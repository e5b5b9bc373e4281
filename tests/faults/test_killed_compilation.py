"""A run that is killed while XLA compiles its loop beside it ends as one that was left alone."""

import os
import random
import signal
import time

import pytest

from tests.faults import driver
from tests.fork import started_script

SCRIPT = '''
import sys
import threading
import time

import keras
import tensorflow as tf

import tfloss
from tests.faults.script import Bare, shuffled
from tfloss import _upstream, hooks
from tfloss.engine import autotune, background_compilation

workdir, life = sys.argv[1:]
SWITCH, STEPS = 200, 300
begun = threading.Event()


class Pace(hooks.Hook):
    """Keeps a run that is to be killed from training until XLA is at work."""
    every = hooks.Every(steps=5)

    def before_train(self):
        self.first = self.trainer.step

    def after_step(self, step):
        if life == "killed" and step >= self.first + 30:
            begun.wait()
            time.sleep(0.2)


def endless(*arguments):
    """Takes XLA minutes, so that the kill finds it at work."""
    def many(x):
        for i in range(3000):
            x = tf.tanh(x @ x) + tf.reduce_mean(x, 0) * float(i)
        return x
    program = tf.function(many, jit_compile=True, autograph=False)
    program = program.get_concrete_function(tf.TensorSpec([32, 32]))
    print("compiles", file=sys.stderr, flush=True)
    begun.set()
    program(tf.zeros([32, 32]))


def done(compilation):
    """The loop begins at the same step in each run that gets there."""
    if trainer.step < SWITCH:
        return False
    compilation._thread.join()
    return True


def rate(tuner, mode):
    """The clock decides nothing: the loop wins after 20 steps of each."""
    for _ in range(2):
        yield mode, 10
    return {"graph": 100.0, "loop": 300.0}[mode]


if life == "killed":
    _upstream.compile_on_copies = endless
background_compilation._Compilation.done = property(done)
autotune.COMPILING = autotune.COMPILING_SECONDS = 0.0
autotune.EXPECTED_SAVING = {"loop": 1e9, "step": 1e9}
autotune.Tuner._rate = rate
keras.utils.set_random_seed(1)
trainer = tfloss.Trainer(
    Bare(), keras.optimizers.Adam(0.01), workdir=workdir, log_every=10,
    hooks=[Pace(), hooks.SaveCheckpoint(hooks.Every(steps=10))],
)
trainer.train(shuffled(), STEPS)
print("mode", trainer.mode, flush=True)
'''


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_compiles_resumes_to_the_same_bits(tmp_path):
    """Killed twice, both times as a graph. From step 200 on, the loop runs."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    draw = random.Random(0)

    def life(workdir, kind):
        environment = {"CUDA_VISIBLE_DEVICES": "-1"}
        return started_script(script, str(workdir), kind, environment=environment)

    def steps(workdir):
        return [int(one.name[5:].split(".")[0]) for one in workdir.glob("checkpoints/step_*")]

    def compiles(workdir, before):
        return max(steps(workdir), default=0) > before and "compiles" in err.read_text()

    whole, killed, err = tmp_path / "whole", tmp_path / "killed", tmp_path / "err"
    for _ in range(2):
        before = max(steps(killed), default=0)
        err.write_text("")
        with life(killed, "killed") as process:
            until = time.monotonic() + 120
            while not compiles(killed, before):
                assert process.is_alive() and time.monotonic() < until, err.read_text()
                time.sleep(0.05)
            time.sleep(draw.uniform(0.0, 0.8))
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        assert before < max(steps(killed)) < 170
    for workdir in (whole, killed):
        with life(workdir, "whole") as process:
            process.join(240)
            assert process.exitcode == 0, err.read_text()
        assert (tmp_path / "out").read_text().endswith("mode loop\n")
    assert driver.differences(driver.results(whole), driver.results(killed)) == []
