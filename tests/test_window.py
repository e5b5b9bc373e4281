import numpy as np
import pytest

from tfloss.engine import Block
from tfloss.window import LogWindow


def _block(first, names, rows):
    return Block(first, names, np.array(rows, np.float32))


def _window(**options):
    now = [0.0]
    window = LogWindow(clock=lambda: now[0], **options)
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
    window = _window(every_step=False)
    assert list(window.logs(batch_size=8)) == [
        (13, {"a": 3.0, "due": 5.0, "steps_per_second": 0.75, "examples_per_second": 6.0} | SPLIT)
    ]
    assert not window


def test_every_step():
    assert list(_window(every_step=True).logs(batch_size=None)) == [
        (11, {"a": 1.0}),
        (12, {"a": 2.0}),
        (13, {"a": 6.0, "due": 5.0, "steps_per_second": 0.75} | SPLIT),
    ]


def test_means_are_taken_in_double_precision():
    window = LogWindow(every_step=False)
    window.add(_block(0, ("a",), [[1e8], [1.0], [-1e8]] * 1000))
    ((_, scalars),) = window.logs(None)
    assert scalars["a"] == pytest.approx(1 / 3)
