import itertools

import numpy as np
import pytest

from tfloss.engine.engine import StepLogs
from tfloss.trainer.log_window import LogWindow


def _block(first, names, rows):
    return StepLogs(first, names, np.array(rows, np.float32))


def _window(**options):
    now = [0.0]
    window = LogWindow(100, clock=lambda: now[0], **options)
    now[0] = 4.0
    window.stopwatch.waited(1.0)
    window.add(_block(10, ("a",), [[1.0], [2.0]]))
    window.add(_block(12, ("a", "due"), [[6.0, 5.0]]))
    return window


SPLIT = {
    "input/wait_fraction": 0.25,
    "time/hooks_fraction": 0.0,
    "time/checkpoint_fraction": 0.0,
}


def test_means_over_the_window_and_speed():
    window = _window(log_every_step=False)
    assert list(window.logs(batch_size=8)) == [
        (13, {"a": 3.0, "due": 5.0, "steps_per_second": 0.75, "examples_per_second": 6.0} | SPLIT)
    ]
    assert not window


def test_every_step():
    assert list(_window(log_every_step=True).logs(batch_size=None)) == [
        (11, {"a": 1.0}),
        (12, {"a": 2.0}),
        (13, {"a": 6.0, "due": 5.0, "steps_per_second": 0.75} | SPLIT),
    ]


def test_means_are_taken_in_double_precision():
    window = LogWindow(10_000, log_every_step=False)
    window.add(_block(0, ("a",), [[1e8], [1.0], [-1e8]] * 1000))
    ((_, scalars),) = window.logs(None)
    assert scalars["a"] == pytest.approx(1 / 3)


def test_a_block_of_several_logs():
    window = LogWindow(2, log_every_step=False, clock=itertools.count().__next__)
    window.add(_block(3, ("a",), [[1.0], [2.0], [4.0], [8.0], [16.0]]))
    logs = dict(window.logs(batch_size=None, complete=True))
    assert {step: scalars["a"] for step, scalars in logs.items()} == {4: 1.0, 6: 3.0, 8: 12.0}
    assert not window
    window.add(_block(8, ("a",), [[1.0]]))
    window.add(_block(9, ("a",), [[2.0], [5.0]]))
    assert {k: v["a"] for k, v in window.logs(None, complete=True)} == {10: 1.5}
    window.add(_block(11, ("a",), [[7.0]]))
    ((step, scalars),) = window.logs(None)
    assert (step, scalars["a"]) == (12, 6.0)


def test_steps_that_are_left_for_later_have_their_time_once():
    now = [0.0]
    window = LogWindow(10, log_every_step=False, clock=lambda: now[0])
    now[0] = 2.0
    window.add(_block(0, ("a",), [[1.0]] * 16))
    ((_, scalars),) = window.logs(None, complete=True)
    assert scalars["steps_per_second"] == 8.0
    now[0] = 3.0
    window.add(_block(16, ("a",), [[1.0]] * 4))
    ((_, scalars),) = window.logs(None, complete=True)
    assert scalars["steps_per_second"] == 4.0


def test_what_is_left_for_later_is_saved_and_restored():
    window = LogWindow(10, log_every_step=False)
    window.add(_block(0, ("a",), np.arange(14.0)[:, None]))
    list(window.logs(None, complete=True))
    other = LogWindow(10, log_every_step=False)
    other.restore(window.saved())
    other.start(14)
    other.add(_block(14, ("a",), np.arange(14.0, 20.0)[:, None]))
    ((step, scalars),) = other.logs(None, complete=True)
    assert (step, scalars["a"]) == (20, 14.5)
