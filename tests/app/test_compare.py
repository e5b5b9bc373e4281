import subprocess
import sys
import time

import pytest

from tests.app.logs import write
from tfloss import cli
from tfloss.app.compare import is_loss, selected_tags, table
from tfloss.app.run_curves import read_runs


@pytest.fixture
def runs(tmp_path):
    def rows(offset):
        logs = [
            {"step": s, "time": s / 10, "losses/total": 10 / s + offset, "steps_per_second": 9.0}
            for s in (100, 200, 1200)
        ]
        results = [
            {"step": s, "time": s / 10, "val/accuracy": value, "val/losses/total": 2.0}
            for s, value in ((200, 0.5 + offset), (700, 0.9 + offset), (1200, 0.75))
        ]
        return sorted(logs + results, key=lambda row: row["step"])

    return [
        write(tmp_path / "slow", rows(0.0), {"rate": 0.1, "model": {"width": 3}}),
        write(tmp_path / "fast", rows(0.01), {"rate": 0.2, "model": {"width": 3}}),
    ]


def test_the_table_has_settings_that_differ_and_best_values(runs):
    found = read_runs(runs)
    assert table(found, selected_tags(found, [])) == [
        ["step", "1,200", "1,200"],
        ["time", "0:01:50", "0:01:50"],
        ["rate", "0.1", "0.2"],
        ["losses/total", "0.008333", "0.01833"],
        ["  lowest", "0.008333 at 1,200", "0.01833 at 1,200"],
        ["val/losses/total", "2", "2"],
        ["  lowest", "2 at 200", "2 at 200"],
        ["val/accuracy", "0.75", "0.75"],
        ["  lowest", "0.5 at 200", "0.51 at 200"],
        ["  highest", "0.9 at 700", "0.91 at 700"],
    ]


def test_a_value_that_a_run_lacks_or_that_is_not_finite(tmp_path):
    paths = [
        write(tmp_path / "a", [{"step": 1, "x": "nan"}, {"step": 2, "x": 3.0}]),
        write(tmp_path / "b", [{"step": 1, "y": "inf"}]),
    ]
    assert table(read_runs(paths), ["x", "y"]) == [
        ["step", "2", "1"],
        ["time", "0:00:00", "0:00:00"],
        ["x", "3", "-"],
        ["  lowest", "3 at 2", "-"],
        ["  highest", "3 at 2", "-"],
        ["y", "-", "inf"],
    ]


def test_globs_choose(runs):
    found = read_runs(runs)
    assert selected_tags(found, ["*_per_second", "val/acc*"]) == [
        "steps_per_second",
        "val/accuracy",
    ]
    with pytest.raises(ValueError, match="No logged name matches. There are: losses/total, steps"):
        selected_tags(found, ["nothing"])
    assert is_loss("losses/a") and is_loss("val/losses/a") and not is_loss("losses")


def test_the_command(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compare", *map(str, runs)]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split() == ["slow", "fast"]
    assert "val/accuracy" in out and "The curves are in compare.png" in err
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["compare", "nothing"]) == 2
    assert "tfloss compare: There is no 'nothing'" in capsys.readouterr().err


def test_without_matplotlib_the_table_is_there_and_the_cure(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    assert cli.main(["compare", *map(str, runs)]) == 1
    out, err = capsys.readouterr()
    assert "val/accuracy" in out and "pip install 'tfloss[plot]'" in err
    assert cli.main(["compare", "--no-png", *map(str, runs)]) == 0
    assert not list(tmp_path.glob("*.png"))


def test_it_does_not_wait_for_tensorflow():
    code = "import sys, tfloss.app.compare; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_it_reads_a_long_run_quickly(tmp_path):
    rows = [{"step": s, "time": float(s), "losses/total": 1.0} for s in range(50_000)]
    path = write(tmp_path / "long", rows)
    began = time.process_time()
    read_runs([path])
    assert time.process_time() - began < 5
