"""The line of the chosen mode says what the run then does."""

import types

import numpy as np
import pytest

from tfloss.common.logger import ChiefLogger
from tfloss.engine.engine import StepLogs
from tfloss.engine.mode_announcement import ModeAnnouncement


def _announced(pauses, call=0.75, steps=300):
    """Calls of 300 steps in 0.75 s, 0.25 s of which wait for data, after pauses of some seconds."""
    now = [100.0]
    tuner = types.SimpleNamespace(title="as a graph", why=" (without data 600)")
    announcement = ModeAnnouncement(tuner, ChiefLogger(), lambda: now[0])

    def run():
        now[0] += call
        return StepLogs(0, ("a",), np.zeros([steps, 1], np.float32))

    for pause in pauses:
        now[0] += pause
        announcement.run(run)
    return announcement


@pytest.mark.parametrize(
    ("pauses", "speed"),
    [
        ([9.0, 0.0, 0.0, 0.0], "400"),  # 1200 steps in 3 s
        ([9.0, 0.05, 0.05, 0.05], "381"),  # logs between the calls: 1200 in 3.15 s
        ([9.0, 20.0, 0.0, 0.0, 0.0], "400"),  # an evaluation between two calls
    ],
)
def test_the_speed_is_that_of_the_first_seconds_in_the_mode(pauses, speed, capsys):
    announcement = _announced(pauses)
    announcement.log()
    assert capsys.readouterr().err == (
        f"tfloss: runs as a graph, {speed} steps/s (without data 600).\n"
    )


def test_a_short_run_says_it_at_its_end(capsys):
    announcement = _announced([0.0])
    assert capsys.readouterr().err == ""
    announcement.log()
    assert "runs as a graph, 400 steps/s" in capsys.readouterr().err
    _announced([]).log()
    assert capsys.readouterr().err == "tfloss: runs as a graph (without data 600).\n"


def test_a_call_that_compiles_for_another_block_does_not_count(capsys):
    announcement = _announced([0.0], call=8.0, steps=100)  # 8 s of compilation
    assert capsys.readouterr().err == ""
    now = [200.0]
    announcement._clock = lambda: now[0]

    def run():
        now[0] += 0.75
        return StepLogs(0, ("a",), np.zeros([300, 1], np.float32))

    for _ in range(4):
        announcement.run(run)
    assert "runs as a graph, 400 steps/s" in capsys.readouterr().err
