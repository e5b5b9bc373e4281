"""Real processes on 127.0.0.1 train together, are told to stop, are killed, and go on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

ROOT = Path(__file__).parents[2]
SCRIPT = [sys.executable, str(ROOT / "tests" / "workers" / "script.py")]
LAUNCH = [sys.executable, "-m", "tfloss.cli", "launch", "--workers", "2"]

pytestmark = pytest.mark.slow


def start(command):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TFLOSS_CONNECT_TIMEOUT": "120"}
    return subprocess.Popen(
        [str(word) for word in command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, seconds=240):
    """Exit code and output; a process that hangs fails the test."""
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"it hangs: {process.communicate()[0]}") from None
    return process.returncode, output


def ended(output):
    """What each process printed at its end."""
    lines = [re.sub(r"^\[\d\] ", "", line) for line in output.splitlines()]
    return [json.loads(line) for line in lines if line.startswith('{"step"')]


def workers(parent):
    """The processes of the two workers."""
    out = subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, text=True).stdout
    return [int(pid) for pid in out.split()]


def wait_for_checkpoint(workdir, beyond=0, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        steps = [int(p.name[5:]) for p in (workdir / "checkpoints").glob("step_*")]
        if steps and max(steps) > beyond:
            return max(steps)
        time.sleep(0.1)
    raise AssertionError(f"no checkpoint beyond step {beyond}")


@pytest.mark.promise(17, 18)
def test_two_workers_train_as_one_process_and_write_once(tmp_path):
    code, output = finish(start([*SCRIPT, tmp_path / "one", 60]))
    assert code == 0, output
    (alone,) = ended(output)
    code, output = finish(start([*LAUNCH, "--", *SCRIPT, tmp_path / "two", 60]))
    assert code == 0, output
    assert "eagerly" not in output  # a strategy's warning
    first, second = ended(output)
    assert first == second
    assert first["val"] == pytest.approx(alone["val"], rel=1e-5)
    for path, value in alone["weights"].items():
        if "own" not in path:  # means of statistics of smaller parts
            np.testing.assert_allclose(first["weights"][path], value, 1e-4, 1e-6, err_msg=path)

    def logged(name):
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        return [(row["step"], row.get("losses/mse"), row.get("val/mse")) for row in rows]

    for one, two in zip(logged("one"), logged("two"), strict=True):
        assert one[0] == two[0]
        for a, b in zip(one[1:], two[1:], strict=True):
            assert a == b or a == pytest.approx(b, rel=1e-4)
    assert (tmp_path / "two" / "export" / "saved_model.pb").is_file()
    assert (tmp_path / "two" / "last" / "saved_model.pb").is_file()
    (events,) = (tmp_path / "two" / "train").iterdir()
    steps = [
        event.step
        for event in EventFileLoader(str(events)).Load()
        for value in event.summary.value
        if value.tag == "Metrics/y"
    ]
    assert steps == [10, 20, 30, 40, 50, 60]


@pytest.mark.promise(17)
def test_sigterm_on_one_worker_saves_once_and_ends_all(tmp_path):
    launcher = start([*LAUNCH, "--", *SCRIPT, tmp_path, 100_000, 0.02])
    wait_for_checkpoint(tmp_path)
    os.kill(workers(launcher.pid)[1], signal.SIGTERM)
    code, output = finish(launcher, 60)
    assert code == 75, output
    step = int(re.search(r"\[0\] tfloss: SIGTERM at step (\d+)", output)[1])
    assert wait_for_checkpoint(tmp_path) == step
    code, output = finish(start([*SCRIPT, tmp_path, step + 5]))
    assert code == 0 and f"resuming at step {step} " in output
    assert ended(output)[0]["step"] == step + 5


def test_sigterm_on_a_single_process(tmp_path):
    process = start([*SCRIPT, tmp_path, 100_000, 0.02])
    wait_for_checkpoint(tmp_path)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process, 60)
    assert code == 75 and "Traceback" not in output, output
    step = int(re.search(r"tfloss: SIGTERM at step (\d+)", output)[1])
    assert wait_for_checkpoint(tmp_path) == step


KILLS = int(os.environ.get("TFLOSS_KILLS", "2"))


@pytest.mark.promise(17)
def test_workers_killed_at_random_go_on_from_the_last_checkpoint(tmp_path):
    """TFLOSS_KILLS=10 for more of them."""
    random = np.random.RandomState(0)
    steps = 40 * (KILLS + 1)
    restarts = ["--max-restarts", str(KILLS + 1)]
    launcher = start([*LAUNCH, *restarts, "--", *SCRIPT, tmp_path, steps, 0.05])
    for _ in range(KILLS):
        before = wait_for_checkpoint(tmp_path)
        wait_for_checkpoint(tmp_path, before)
        time.sleep(random.uniform(0, 1))
        os.kill(workers(launcher.pid)[random.randint(2)], signal.SIGKILL)
        time.sleep(1)
    code, output = finish(launcher, 60 * (KILLS + 2))
    assert code == 0, output
    first, second = ended(output)
    assert first == second and first["step"] == steps
    assert output.count("resuming at step") >= KILLS
    # Where an undisturbed run ends: 0.05 to 0.11 after 60 to 300 steps.
    assert first["val"]["mse"] < 0.3


def test_a_script_says_what_there_is_once(tmp_path):
    script = [sys.executable, "examples/digits/train.py", "--config=configs/digits.py"]
    command = [*LAUNCH, "--", *script, f"--workdir={tmp_path}", "--max_steps=20"]
    code, output = finish(start(command))
    assert code == 0, output
    lines = [line for line in output.splitlines() if re.match(r"\[\d\] (test/|\w+ +\S*/)", line)]
    said = [(line[:3], line.split()[1]) for line in lines]
    assert [who for who, what in said if what.startswith("test/")] == ["[0]"], output
    assert ("[0]", "checkpoints") in said, output
    assert f"[1] files       written by the first worker, in {tmp_path}" in output
    assert [what for who, what in said if who == "[1]"] == [], output
