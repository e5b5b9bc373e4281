"""A run whose workdir was damaged resumes rightly, or is refused; see `damage.py`."""

import subprocess
import sys

import pytest


def damage(*arguments):
    command = [sys.executable, "-m", "tests.faults.damage", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


def test_damaged_workdirs_are_resumed_rightly_or_refused():
    assert "2 damages: " in damage("--cases", 2, "--seed", 5)


@pytest.mark.slow
def test_three_hundred_damaged_workdirs():
    assert "300 damages: " in damage("--cases", 300)
