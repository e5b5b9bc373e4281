"""The programs in docs/sweeps.md run, prune, and continue a trial that was killed."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "sweeps.md"
# The second trial saves checkpoints at steps 50 and 100, and is killed at step 120.
KILL = """
import os, signal
import tfloss
from tfloss.hooks import Every, Hook, OnSteps, SaveCheckpoint

class Kill(Hook):
    every = OnSteps(120)
    def after_step(self, step):
        os.kill(os.getpid(), signal.SIGKILL)

made, init = [], tfloss.Trainer.__init__

def patched(self, *args, hooks=(), **options):
    made.append(self)
    if len(made) == 2:
        hooks = [*hooks, SaveCheckpoint(Every(steps=50)), Kill()]
    init(self, *args, hooks=hooks, **options)

tfloss.Trainer.__init__ = patched
"""


def program(package):
    found = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    (code,) = (one for one in found if f"import {package}\n" in one)
    return code


def run(code, folder):
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
def test_optuna_prunes_and_continues(tmp_path):
    optuna = pytest.importorskip("optuna")
    code = program("optuna")
    killed = run(KILL + code, tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"resuming at step 100 from .*trial_001", done.stderr), done.stderr
    study = optuna.load_study(study_name="signs", storage=f"sqlite:///{tmp_path}/study.db")
    states = [trial.state.name for trial in study.trials]
    assert states[:2] == ["COMPLETE", "FAIL"] and states[2] in ("COMPLETE", "PRUNED")
    assert len(states) == 7 and "PRUNED" in states and states.count("FAIL") == 1
    first, again = study.trials[1:3]
    assert again.params == first.params
    assert again.user_attrs["workdir"] == "runs/trial_001"
    assert f"best trial: {study.best_trial.number}" in done.stdout
    pruned = next(trial for trial in study.trials if trial.state.name == "PRUNED")
    assert max(pruned.intermediate_values) < 200


@pytest.mark.slow
def test_keras_tuner_continues(tmp_path):
    pytest.importorskip("keras_tuner")
    code = program("keras_tuner")
    killed = run(KILL + code, tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"resuming at step 100 from .*trial_1/run", done.stderr), done.stderr
    assert len(list((tmp_path / "tuner" / "signs").glob("trial_*/run"))) == 3
    assert re.search(r"best trial: \d, 0\.\d+", done.stdout)


def test_the_page_has_both_programs():
    assert "class Prune(tfloss.Hook)" in program("optuna")
    assert "def run_trial" in program("keras_tuner")
