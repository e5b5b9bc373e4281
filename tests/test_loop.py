"""What the loop tells of time. Cuts and hooks are tested with the trainer."""

import time

import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.toys import Line, rows
from tfloss import loop
from tfloss.hooks import Every, Hook


def slowly(secs):
    def pull(x):
        time.sleep(secs)
        return x

    def element(batch):
        x = tf.numpy_function(pull, [batch["x"]], tf.float32)
        return {"x": tf.ensure_shape(x, [4])}

    return rows([1.0, 2.0, 3.0, 4.0], 4).map(element)


class Logs(Hook):
    every = Every(steps=10)

    def __init__(self, secs=0.0, kind="hooks"):
        self.secs, self.timed_as, self.logs = secs, kind, []

    def after_call(self, step):
        time.sleep(self.secs)

    def on_log(self, step, scalars, summaries):
        self.logs.append(scalars)


def trained(data, jit, hook):
    trainer = tfloss.Trainer(
        Line(),
        tf.keras.optimizers.SGD(0.01),
        jit=jit,
        log_every=10,
        hooks=[hook],
        default_hooks=False,
    )
    trainer.train(data, 30)
    return trainer


@pytest.mark.parametrize("jit", [False, True, "loop"])
def test_waiting_for_data_is_measured_and_warned_of(jit, capsys, monkeypatch):
    monkeypatch.setattr(loop, "_WAITED_SECONDS", 0.1)
    hook = Logs()
    trained(slowly(0.03), jit, hook)
    assert 0.8 < np.mean([one["input/wait_fraction"] for one in hook.logs[1:]]) <= 1.0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "waiting for data" in x]
    assert "input/wait_fraction" in line


@pytest.mark.parametrize("jit", [False, "loop"])
def test_a_fast_input_is_not(jit, capsys, monkeypatch):
    monkeypatch.setattr(loop, "_WAITED_SECONDS", 0.0)
    hook = Logs(0.2)
    trained(rows([1.0, 2.0, 3.0, 4.0], 4), jit, hook)
    assert max(one["input/wait_fraction"] for one in hook.logs[1:]) < 0.2
    assert "waiting for data" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["hooks", "checkpoint"])
def test_hooks_and_checkpoints_are_measured(kind):
    hook = Logs(0.1, kind)
    trainer = trained(rows([1.0, 2.0, 3.0, 4.0], 4), False, hook)
    assert hook.logs[-1][f"time/{kind}_fraction"] > 0.8  # the time since the log before
    assert 0.3 <= trainer.stopwatch.seconds()[kind] < 0.5
