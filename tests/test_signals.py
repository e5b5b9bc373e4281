import os
import signal
import threading

import pytest

from tfloss.signals import caught


def test_the_first_is_noted_and_the_second_does_what_it_did():
    with caught("SIGINT") as came:
        assert "SIGINT" not in came
        os.kill(os.getpid(), signal.SIGINT)
        assert "SIGINT" in came
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), caught("SIGTERM"):
        assert signal.getsignal(signal.SIGTERM) is not before
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_catches_nothing():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def run():
        with caught("SIGTERM") as came:
            seen.append((signal.getsignal(signal.SIGTERM), set(came.names)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(before, set())]
