"""What may go wrong between workers, in real processes on 127.0.0.1: two, two replicas each."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.fork import run_script

ROOT = Path(__file__).parents[2]


def _one(out, **options):
    """The script as one process on one replica: its result."""
    out.mkdir(exist_ok=True)
    options = {"strategy": "one", **options}
    done = run_script(ROOT / "tests" / "hosts.py", str(out), json.dumps(options))
    assert done.returncode == 0, done.stderr
    return json.loads((out / "worker_0.json").read_text())


def _launch(out, *flags, **options):
    """The script as two workers: exit code, output, results by worker."""
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tfloss.cli", "launch", "--workers=2", *flags, "--"]
    command += [sys.executable, "-m", "tests.hosts", str(out), json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=ROOT)
    found = {i: out / f"worker_{i}.json" for i in range(2)}
    results = {i: json.loads(path.read_text()) for i, path in found.items() if path.exists()}
    return done.returncode, done.stdout + done.stderr, results


def _assert_close(expected, found, tolerance=1e-5):
    assert set(expected["weights"]) == set(found["weights"])
    for name, value in expected["weights"].items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(found["weights"][name], value, atol=tolerance * scale)
    for kind in ("losses", "results"):
        for name, value in expected.get(kind, {}).items():
            np.testing.assert_allclose(found[kind][name], value, rtol=tolerance, err_msg=name)


def _checkpoints(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def test_the_script_of_these_tests_runs_by_itself(tmp_path):
    """What is not marked slow, so that the script doesn't rot unseen."""
    workdir = tmp_path / "run"
    found = _one(tmp_path, workdir=str(workdir), slow_save=0.01, save_every=10, steps=20)
    assert found["step"] == 20
    assert len(_checkpoints(workdir)) == 2


@pytest.mark.slow
def test_an_input_fn_reads_each_workers_part(tmp_path):
    expected = _one(tmp_path / "one")

    code, output, results = _launch(tmp_path / "two", input_fn=True)

    assert code == 0, output
    for worker in range(2):
        assert results[worker]["batch_size"] == 16
        _assert_close(expected, results[worker])


@pytest.mark.slow
@pytest.mark.parametrize("input_fn", [False, True])
def test_watched_numbers_are_those_of_one_process(input_fn, tmp_path):
    """On all workers, and written by the first one only."""
    options = {"watch": 4, "steps": 10, "input_fn": input_fn}
    expected = _one(tmp_path / "one", **options)

    workdir = tmp_path / "run"
    code, output, results = _launch(tmp_path / "two", workdir=str(workdir), **options)

    assert code == 0, output
    assert results[0]["watched"] == results[1]["watched"]
    assert results[0]["counts"] == results[1]["counts"]
    assert set(results[0]["watched"]) == set(expected["watched"])
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    share = "watch/share/masked"
    assert [line["step"] for line in lines if share in line] == [4, 8]
    assert (workdir / "watch.txt").read_text().startswith("Step 8: norms")
    for name, value in expected["watched"].items():
        np.testing.assert_allclose(results[0]["watched"][name], value, rtol=1e-4, err_msg=name)
    counts, one = np.array(results[0]["counts"]), np.array(expected["counts"])
    assert (counts.sum(-1) == one.sum(-1)).all()
    # A value at the edge of two buckets may be rounded into the other.
    assert np.abs(counts - one).sum() <= 0.02 * one.sum()


@pytest.mark.slow
def test_sigterm_on_one_worker_saves_once_and_ends_all(tmp_path):
    """Nobody leaves before it is saved: the launcher would end who still writes."""
    workdir = tmp_path / "run"
    options = {"workdir": str(workdir), "kill": [1, 7, 15], "slow_save": 3.0}

    code, output, results = _launch(tmp_path / "two", **options)

    assert code == 75 and not results, output
    (checkpoint,) = _checkpoints(workdir)
    step = int(checkpoint[-8:])
    assert 7 <= step <= 9
    assert output.count(f"SIGTERM at step {step}: saving a checkpoint") == 1
    assert "Traceback" not in output

    one = _one(tmp_path / "one", workdir=str(workdir), steps=step + 3)
    assert one["step"] == step + 3


@pytest.mark.slow
def test_a_workdir_that_not_all_see_is_refused(tmp_path):
    """Before anybody restores: that takes all, and those who don't would be waited for."""
    mine, other = str(tmp_path / "mine"), str(tmp_path / "other")
    _one(tmp_path / "one", workdir=mine, steps=2, dropout=0.2)
    options = {"seed": None, "dropout": 0.2, "own_workdirs": [mine, other]}

    code, output, results = _launch(tmp_path / "two", **options)

    assert code == 1 and not results
    step = 'the checkpoint of step 2 is "found" on worker 0'
    assert output.count(f'{step}, "missing in {other}/checkpoints" on worker 1') == 2


@pytest.mark.slow
def test_one_workers_wish_and_clock_count_for_all(tmp_path):
    workdir = tmp_path / "run"
    options = {"workdir": str(workdir), "stop": [1, 12], "save_seconds": 0.3, "sleep": 0.1}

    code, output, results = _launch(tmp_path / "two", **options)

    assert code == 0, output
    assert [results[i]["step"] for i in range(2)] == [12, 12]
    assert results[1]["reason"] == "enough"
    assert results[0]["reason"] == "another worker stopped"
    saved = _checkpoints(workdir)
    assert saved[-1] == "step_00000012" and 3 <= len(saved) <= 12


@pytest.mark.slow
def test_a_nan_of_one_worker_stops_all_and_every_batch_is_kept(tmp_path):
    workdir = tmp_path / "run"

    code, output, results = _launch(tmp_path / "two", workdir=str(workdir), nan_at=3)

    assert code == 1 and not results
    assert output.count("NonFiniteLossError: Loss 'mean', 'masked' is not finite at step 3") == 2
    kept = workdir / "nonfinite/step_00000003"
    assert sorted(path.name for path in kept.glob("batch_*")) == [f"batch_{i}" for i in range(4)]
    assert json.loads((kept / "report.json").read_text())["replicas"] == 4
    replayed = subprocess.run(
        [sys.executable, "-m", "tfloss.cli", "replay", "--yes", str(workdir)],
        capture_output=True,
        text=True,
        timeout=120,
        env={k: v for k, v in os.environ.items() if k != "TF_CONFIG"},
    )
    assert replayed.returncode == 0, replayed.stderr
    assert re.search(r"Replica 2: every tensor .* was finite", replayed.stdout)
    assert re.search(r"Replica 3: in the forward pass", replayed.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", ["alike", "own"])
def test_data_in_another_order_on_each_worker_is_told(tmp_path, shuffle):
    """A shuffle that nobody seeds is the same on all; one that each seeds itself is not."""
    code, output, results = _launch(tmp_path / "two", shuffle=shuffle, steps=3)

    assert code == 0, output
    assert output.count("read different first batches") == (2 if shuffle == "own" else 0)


@pytest.mark.slow
def test_data_that_ends_ends_all_at_one_step(tmp_path):
    workdir = tmp_path / "run"

    code, output, results = _launch(tmp_path / "two", workdir=str(workdir), repeat=False, batch=12)

    assert code == 1 and not results
    assert output.count("DataError: The data set ended after 7 batches, at step 7 of 20") == 2
    assert _checkpoints(workdir) == ["step_00000007"]
