import math

import pytest

from tests.app.logs import write
from tfloss.app.run_curves import read_runs


def test_curves_config_and_time(tmp_path):
    """The run was killed after 20 s, and resumed a day later."""
    rows = [
        {"step": 10, "time": 100.0, "a": 1.0},
        {"step": 20, "time": 110.0, "a": "nan"},
        {"step": 20, "time": 110.0, "val/b": 3.0},
        {"step": 30, "time": 120.0, "a": 0.5},
        {"step": 40, "time": 99_990.0, "a": 0.25},
        {"step": 50, "time": 100_000.0, "a": 0.125},
    ]
    folder = write(tmp_path / "run", rows, {"model": {"width": 3}})
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "a": 0.')  # killed
    (run,) = read_runs([folder])
    assert run.name == "run" and run.step == 50 and run.seconds == 30.0
    assert run.config == {"model.width": 3}
    assert [step for step, _ in run.curves["a"]] == [10, 20, 30, 40, 50]
    assert math.isnan(run.curves["a"][1][1]) and run.curves["val/b"] == [(20, 3.0)]
    assert read_runs([folder / "metrics.jsonl"]) == [run] or math.isnan(run.curves["a"][1][1])


def test_names_are_short_and_different(tmp_path):
    paths = [write(tmp_path / name, [{"step": 1}]) for name in ("a/x", "b/x", "b/y")]
    assert [run.name for run in read_runs(paths)] == ["a/x", "b/x", "b/y"]
    assert [run.name for run in read_runs(paths[1:])] == ["x", "y"]
    assert [run.name for run in read_runs(paths[:1] * 2)] == ["x (1)", "x (2)"]


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="There is no '.*nothing'"):
        read_runs([tmp_path / "nothing"])
    write(tmp_path / "runs" / "a", [{"step": 1}])
    with pytest.raises(ValueError, match="has no metrics.jsonl.*Did you mean.*runs/a"):
        read_runs([tmp_path / "runs"])
