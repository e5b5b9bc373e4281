import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.fork import run_script
from tfloss.checkpoint import CheckpointDirectory
from tfloss.errors import Aborted
from tfloss.trainer.signals import caught

ROOT = Path(__file__).parents[2]


def press(name="SIGINT"):
    os.kill(os.getpid(), getattr(signal, name))


def test_the_first_is_noted_and_the_second_aborts():
    with caught("SIGINT") as came:
        assert "SIGINT" not in came
        press()
        assert "SIGINT" in came
        with pytest.raises(Aborted):
            press()
    with pytest.raises(KeyboardInterrupt):
        press()


def test_a_handler_of_the_users_gets_the_second():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with caught("SIGTERM") as came:
            press("SIGTERM")
            assert "SIGTERM" in came and not seen
            press("SIGTERM")
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), caught("SIGTERM"):
        assert signal.getsignal(signal.SIGTERM) is not before
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.set_wakeup_fd(-1) == -1
    assert not [one for one in threading.enumerate() if one.name == "tfloss-signals"]


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as of a job in the background
    try:
        with caught("SIGINT") as came:
            press()
        assert "SIGINT" not in came
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_first_is_told_once_each():
    told = []
    with caught("SIGINT", "SIGTERM", first=told.append):
        press()
        press("SIGTERM")
    assert sorted(told) == ["SIGINT", "SIGTERM"]


def test_beside_an_event_loop_that_is_woken_by_signals():
    read, write = socket.socketpair()
    write.setblocking(False)
    signal.set_wakeup_fd(write.fileno())
    told = []
    try:
        with caught("SIGINT", first=told.append):
            press()
        assert told == ["SIGINT"]
        assert read.recv(9) == bytes([signal.SIGINT])
    finally:
        assert signal.set_wakeup_fd(-1) == write.fileno()
        read.close()
        write.close()


def test_another_thread_catches_nothing():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def run():
        with caught("SIGTERM") as came:
            seen.append((signal.getsignal(signal.SIGTERM), set(came.names)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(before, set())]


BUSY = """
import ctypes
from tfloss.trainer.signals import caught

lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
lock(mutex)
with caught("SIGINT", "SIGTERM", first=lambda name: print(name, flush=True)):
    print("busy", flush=True)
    lock(mutex)  # for ever; no signal interrupts it, as none does TensorFlow's compiler
"""


@contextlib.contextmanager
def started(script, grace=60):
    """Starts a script, and waits until it has printed "busy"."""
    environment = {**os.environ, "TFLOSS_SIGTERM_GRACE": str(grace)}
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "busy\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("SIGINT", 130, "tfloss: ended at once by a second Ctrl-C.\n"),
        ("SIGTERM", 75, "tfloss: ended at once by a second SIGTERM.\n"),
    ],
)
def test_a_second_one_ends_a_script_that_python_can_not_interrupt(name, code, message):
    with started(BUSY) as process:
        time.sleep(0.2)
        process.send_signal(getattr(signal, name))
        assert process.stdout.readline() == f"{name}\n"  # at once, though nothing is interrupted
        process.send_signal(getattr(signal, name))
        _, err = process.communicate(timeout=30)  # before 60 s of grace
        assert process.returncode == code
        assert err == message


def test_a_single_sigterm_ends_a_blocked_script_after_the_grace_period():
    with started(BUSY, grace=2) as process:
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 75
        assert time.monotonic() - began > 2
        assert err == "tfloss: ended by SIGTERM: Python was blocked for 2 seconds.\n"


ALIVE = """
import time
from tfloss.trainer.signals import caught

with caught("SIGTERM") as came:
    print("busy", flush=True)
    until = time.monotonic() + 2.5
    while time.monotonic() < until:  # such as a long evaluation
        time.sleep(0.1)
assert "SIGTERM" in came
print("done")
"""


def test_a_script_that_runs_python_code_has_the_time_that_it_needs():
    with started(ALIVE, grace=1.5) as process:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (0, "done\n", "")


@pytest.mark.parametrize("text", ["a minute", "-1", "nan", "inf"])
def test_a_grace_period_that_is_no_number_is_refused(monkeypatch, text):
    monkeypatch.setenv("TFLOSS_SIGTERM_GRACE", text)
    with pytest.raises(ValueError, match=f"TFLOSS_SIGTERM_GRACE='{text}' must be a number"):
        with caught("SIGTERM"):
            pass


HANGING = """
import os, signal, sys, time
import keras, tensorflow as tf
import tfloss

class Model(keras.Model):
    def build(self, shape):
        self.w = self.add_weight(shape=[])

    def call(self, x, training=False):
        return {"square": tf.reduce_mean(tf.square(self.w - x))} if training else self.w

def batches():
    for step in range(7):
        yield [float(step)]
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(600)

data = tf.data.Dataset.from_generator(batches, output_signature=tf.TensorSpec([1], tf.float32))
trainer = tfloss.Trainer(
    Model(), keras.optimizers.SGD(0.1), workdir=sys.argv[1], jit=False,
    hooks=[tfloss.hooks.SaveCheckpoint(tfloss.Every(steps=5))],
)
trainer.train(data, 100)
"""


def test_sigterm_ends_a_run_whose_generator_hangs(tmp_path):
    (tmp_path / "script.py").write_text(HANGING)
    grace = {"TFLOSS_SIGTERM_GRACE": "1", "PYTHONPATH": str(ROOT)}
    run = run_script(tmp_path / "script.py", str(tmp_path / "run"), environment=grace, timeout=60)
    assert run.returncode == 75, run.stderr
    assert "ended by SIGTERM: Python was blocked for 1 seconds." in run.stderr
    assert CheckpointDirectory(tmp_path / "run" / "checkpoints").valid_steps() == [5]
