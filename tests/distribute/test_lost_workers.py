"""A worker ends when another one is gone, and only if it needs the other."""

import sys
import threading
import time

import pytest
import tensorflow as tf

from tests.distribute.channels import channels, lose
from tfloss.distribute import lost_workers
from tfloss.distribute.lost_workers import LostWorkers
from tfloss.errors import WorkerError


@pytest.fixture
def guard(monkeypatch):
    """`guard(channel)` and what it has done: the reasons of aborts, and exit codes."""
    monkeypatch.setattr(lost_workers, "EXIT_SECONDS", 0.6)
    monkeypatch.setattr(lost_workers, "_ERROR_SECONDS", 0.2)
    monkeypatch.setattr(lost_workers, "_ENDED_SECONDS", 0.2)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    done = []
    return lambda channel: LostWorkers(channel, done.append, done.append), done


def wait(done, count, seconds=30.0):
    deadline = time.monotonic() + seconds
    while len(done) < count and time.monotonic() < deadline:
        time.sleep(0.01)
    return done


def test_a_lost_worker_aborts_collectives_and_then_ends_the_process(guard, messages, capfd):
    make, done = guard
    with channels(2) as made:
        with make(made[0]).call():
            lose(made[1])
            found = wait(done, 2)
    assert found == [f"Worker 1 (host1:2222): {reason}" for reason in [LOST]] + [1]
    assert messages[0] == f"worker 1 (host1:2222): {LOST}; this worker ends within 0.6 s"
    assert "has not ended by itself" in messages[1]
    assert "test_lost_workers.py" in capfd.readouterr().err  # the stacks


LOST = "it was lost: its process was killed, or its host can't be reached"


def test_a_worker_that_has_finished_is_left_alone(guard):
    make, done = guard
    with channels(2) as made:
        with make(made[0]).call():
            pass
        lose(made[1])
        time.sleep(1.0)
    assert done == [f"Worker 1 (host1:2222): {LOST}"]  # nothing but collectives is ended


def test_a_worker_that_is_still_building_ends_with_a_lost_one_but_not_with_one_that_ended(guard):
    make, done = guard
    with channels(3) as made:
        make(made[0])
        made[1].close()
        time.sleep(1.2)
        assert done == ["Worker 1 (host1:2222): its process has ended; see its output"]
        lose(made[2])
        assert wait(done, 3)[-1] == 1


def test_an_error_that_all_workers_raise_aborts_nobody(guard):
    make, done = guard
    with channels(2) as made:
        first, second = make(made[0]), make(made[1])
        with first.call(), second.call():
            second.report(ValueError("the data ended"))
            first.report(ValueError("the data ended"))
            time.sleep(1.0)
    assert done == []


def test_an_error_of_one_worker_ends_the_other(guard, messages):
    make, done = guard
    with channels(2) as made:
        first, second = make(made[0]), make(made[1])
        with first.call(), second.call():
            second.report(ValueError("mine"))
            found = wait(done, 2)
    assert found == ["Worker 1 (host1:2222): it has failed with ValueError: mine", 1]
    assert "it has failed with ValueError: mine; this worker ends, too" in messages[0]


def test_a_worker_that_finds_a_way_out_is_not_ended(guard):
    make, done = guard
    with channels(2) as made:
        one = make(made[0])
        with pytest.raises(ZeroDivisionError), one.call():
            lose(made[1])
            wait(done, 1)
            raise ZeroDivisionError  # its collective has failed
        time.sleep(1.0)
    assert len(done) == 1


def test_an_error_of_a_collective_is_explained_by_what_comes_later(guard):
    """TensorFlow may know of a lost worker before the control channel does."""
    make, _ = guard
    with channels(2) as made:
        one = make(made[0])
        threading.Timer(0.3, made[1].tell, ["error", "ValueError: mine"]).start()
        with pytest.raises(WorkerError, match=r"Worker 1 \(host1:2222\): .* ValueError: mine. All"):
            with one.call():
                raise tf.errors.UnavailableError(None, None, "connection reset")
        with pytest.raises(ZeroDivisionError), one.call():  # has nothing to do with workers
            raise ZeroDivisionError


def test_an_error_outside_of_the_trainer_is_told_and_explained(guard, messages, capsys):
    make, done = guard
    with channels(2) as made:
        make(made[0]).report_uncaught()
        heard = []
        made[1].listen("error", lambda rank, text: heard.append(text))
        error = ValueError("no such file")
        sys.excepthook(ValueError, error, None)
        assert wait(heard, 1) == ["ValueError: no such file"]
        assert "ValueError: no such file" in capsys.readouterr().err
        made[1].tell("error", "OSError: full")
        lost = tf.errors.UnavailableError(None, None, "gone")
        sys.excepthook(type(lost), lost, None)
    assert messages[-1].startswith("Worker 1 (host1:2222): it has failed with OSError: full. All")
