"""A run that is killed again and again ends as one that was left alone; see `driver.py`."""

import subprocess
import sys

import pytest

from tests.faults.pipelines import PIPELINES
from tests.faults.script import KINDS


def drive(*arguments):
    command = [sys.executable, "-m", "tests.faults.driver", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


@pytest.mark.promise(13)
def test_killed_in_shuffled_data():
    out = drive("--kills", 4, "--kinds", "shuffle")
    assert "shuffle: 0 differences after 4 kills" in out


@pytest.mark.slow
def test_thirty_kills_of_all_kinds_of_runs():
    kinds = [kind for kind in KINDS if not kind.startswith(("pipe_", "loop_"))]
    out = drive("--kills", 30, "--kinds", *kinds)
    assert out.count(" 0 differences") == len(kinds)


@pytest.mark.slow
def test_kills_in_all_kinds_of_pipelines():
    out = drive("--kills", len(PIPELINES), "--kinds", "pipe_*")
    assert out.count(" 0 differences") == len(PIPELINES)
