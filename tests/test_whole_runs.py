"""benchmarks/speed/whole_runs.py: what is measured, what is computed, when a run is stopped."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SPEED = Path(__file__).parents[1] / "benchmarks" / "speed"
NAMES = ("record", "measure", "write", "whole_run_tables", "whole_runs")


@pytest.fixture(autouse=True)
def _modules(monkeypatch):
    monkeypatch.syspath_prepend(str(SPEED))
    yield
    for name in NAMES:
        sys.modules.pop(name, None)


def _record(monkeypatch, ages, **options):
    import record

    ages = iter(ages)
    monkeypatch.setattr(record, "process_age", lambda: next(ages))
    points = []
    options = {"reach": 1_000, "seconds": 30.0, "patience": 90.0, "fast": 0.0, **options}
    return record.Record(lambda *point: points.append(point), **options), points


def test_a_run_ends_when_the_step_is_reached_and_the_rate_is_known(monkeypatch):
    record, points = _record(monkeypatch, [5.0, 5.01, 20.0, 35.0, 36.0])
    enough = [record.add(step) for step in (100, 110, 500, 900, 1_000)]
    assert enough == [False, False, False, False, True]  # 30 s were over at 900 steps
    assert record.rate == pytest.approx(900 / 31)
    assert record.pause == pytest.approx(15.0)
    assert points == [(100, 5.0), (500, 20.0), (900, 35.0), (1_000, 36.0)]  # none within 0.05 s


def test_a_run_that_takes_too_long_or_can_not_win_ends_earlier(monkeypatch):
    record, _ = _record(monkeypatch, [5.0, 70.0, 91.0])
    assert [record.add(step) for step in (100, 200, 300)] == [False, False, True]
    record, _ = _record(monkeypatch, [5.0, 14.0, 15.0], fast=100.0)
    assert [record.add(step) for step in (100, 500, 590)] == [False, False, True]  # 49 steps/s
    record, _ = _record(monkeypatch, [5.0, 15.0], fast=100.0)
    assert [record.add(step) for step in (100, 620)] == [False, False]  # 52 steps/s


def test_the_rate_begins_when_the_mode_is_chosen(monkeypatch):
    record, _ = _record(monkeypatch, [5.0, 10.0, 12.0, 45.0])
    record.add(100, steady=False)
    record.add(200, steady=False)
    record.add(300)
    assert record.add(3_600)
    assert record.rate == pytest.approx(100.0)


def test_times_are_those_of_the_points_and_of_the_checkpoint():
    pytest.importorskip("matplotlib")
    from whole_run_tables import seconds_to, table

    points = [[100, 6.0], [1_000, 8.0], [10_000, 30.0], [15_000, 40.0]]
    hand = {
        "points": points,
        **{"last": 15_000, "at": 40.0, "ended": 41.5, "rate": 500.0, "pause": 0.2, "error": ""},
    }
    runs = {"100000": hand}
    assert seconds_to("hand, loop", runs, 100) == (7.5, True)
    assert seconds_to("hand, loop", runs, 10_000) == (31.5, True)
    assert seconds_to("hand, loop", runs, 100_000) == (40.0 + 85_000 / 500 + 1.5, False)
    short = {
        "points": [[100, 5.0]],
        **{"last": 100, "at": 5.0, "ended": 6.0, "rate": None, "pause": 0.0, "error": ""},
    }
    assert seconds_to("tfloss", {"100": short}, 100) == (6.0, True)
    assert seconds_to("tfloss", {"100": short}, 1_000) is None
    lines = table({"hand, loop": runs, "tfloss": {"100": short}})
    assert lines[2] == "| tfloss | 5.0 | **6.0** | – | – | – | – | 0.00 |"
    assert "| 7.5 | **9.5** | **31.5** | **~ 211.5** | 500 | 0.20 |" in lines[3]
    assert lines[4].startswith("| *tfloss / best other* | | 0.80 | – |")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hand, loop", "fit, many steps/call, unrolled", "tfloss"])
def test_a_contender_reports_its_steps_and_ends_with_a_checkpoint(name):
    done = subprocess.run(
        [sys.executable, str(SPEED / "worker.py"), "mlp", name],
        input="whole 300 300 1 60 0\nend\n",
        capture_output=True,
        text=True,
        check=True,
    )
    *points, last, note = map(json.loads, done.stdout.splitlines())
    assert "error" not in last, last
    steps = [point["step"] for point in points]
    assert steps == sorted(set(steps)) and steps[-1] <= 300
    assert 0 < points[0]["seconds"] < last["at"] <= last["ended"]
    assert last["last"] == 300
