"""A run that is killed again and again ends as one that was left alone; see `driver.py`."""

import functools
import subprocess
import sys

import pytest

from tests.faults.exports import KilledExports
from tests.faults.pipelines import PIPELINES
from tests.faults.script import EXPORTING, KINDS
from tfloss.hooks.described_export import DescribedExport


def drive(*arguments):
    command = [sys.executable, "-m", "tests.faults.driver", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


@pytest.mark.promise(13)
def test_killed_in_shuffled_data():
    out = drive("--kills", 1, "--kinds", "shuffle")
    assert "shuffle: 0 differences after 1 kills" in out


@pytest.mark.slow
def test_thirty_kills_of_all_kinds_of_runs():
    kinds = [kind for kind in KINDS if not kind.startswith(("pipe_", "loop_"))]
    out = drive("--kills", 30, "--kinds", *kinds)
    assert out.count(" 0 differences") == len(kinds)


@pytest.mark.slow
@pytest.mark.parametrize("jit", ["pipe", "loop"])
def test_kills_in_all_kinds_of_pipelines(jit):
    out = drive("--kills", len(PIPELINES), "--kinds", f"{jit}_*")
    assert out.count(" 0 differences") == len(PIPELINES)


@pytest.mark.slow
def test_kills_of_runs_that_export():
    out = drive("--kills", 2 * len(EXPORTING), "--kinds", *EXPORTING)
    assert out.count(" 0 differences") == len(EXPORTING)


def test_an_export_that_is_not_whole_is_found(tmp_path):
    """The check after each kill can fail."""
    killed = KilledExports(tmp_path)
    killed.check()
    for step in (1, 2):
        write = functools.partial(lambda text, path: path.write_text(text), f"step {step}")
        DescribedExport(tmp_path / "export").replace(write, {"step": step})
        killed.check()
    (tmp_path / "export").write_text("step")
    with pytest.raises(RuntimeError, match="none of those that its description names"):
        killed.check()
    (tmp_path / "export").unlink()
    with pytest.raises(RuntimeError, match="export is gone"):
        killed.check()
