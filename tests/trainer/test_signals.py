import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

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
with caught("SIGINT", first=lambda name: print(name, flush=True)):
    print("busy", flush=True)
    lock(mutex)  # for ever; no signal interrupts it, as none does TensorFlow's compiler
"""


def test_a_second_one_ends_a_script_that_python_can_not_interrupt():
    with subprocess.Popen(
        [sys.executable, "-c", BUSY],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "busy\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "SIGINT\n"  # at once, though nothing is interrupted
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - began < 10  # on a busy machine
    assert err == "tfloss: ended at once by a second Ctrl-C.\n"
