"""Workers that are not the same name the difference, and end, in real processes on 127.0.0.1."""

import concurrent.futures
import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.fork import run_script
from tfloss.distribute.launch import free_ports

SCRIPT = Path(__file__).with_name("unequal.py")
ROOT = Path(__file__).parents[2]
SECONDS = 60  # in which all workers must have ended


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory):
    """TensorFlow is imported before the time is measured."""
    script = tmp_path_factory.mktemp("warm") / "script.py"
    script.write_text("")
    run_script(script)


def run(kind, workdir, workers=2, steps=8, environment=None):
    """Runs the script as several workers: their exit codes and outputs, and how long it took."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(workers)]

    def one(rank):
        try:
            return run_script(
                SCRIPT,
                kind,
                str(workdir),
                str(steps),
                environment={
                    "TFLOSS_WORKERS": ",".join(addresses),
                    "JOB_COMPLETION_INDEX": str(rank),
                    "PYTHONPATH": str(ROOT),
                    "TF_CONFIG": "",
                    **(environment or {}),
                },
                timeout=3 * SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"worker {rank} hangs: {error.output}\n{error.stderr}") from None

    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(one, range(workers)))
    return addresses, found, time.monotonic() - began


# What each worker says. {last} is the worker that differs.
MESSAGES = {
    "histogram": r"the summaries is \[\"mean\"\] on worker 0, .*\"hidden\", .* on worker {last}",
    "clip_norm": r"step/clip_norm is null on worker 0, .*1 on worker {last}",
    "width": r"different variables: worker 0 .* of shape \(3, 4\).*; worker {last} .*\(3, 5\)",
    "data": r"data/number of batches is 8 on worker 0, .*5 on worker {last}",
    "ends": r"worker {last} \({address}\): it has failed with DataError: .* ended after 5",
    "scalar": r"the summaries is \[\"mean\"\] on worker 0, .*\"more\"\] on worker {last}",
    "layer": r"different variables|different things.* worker {last} .*the creation of a variable",
    "variable": r"worker {last} \(\S+\): variable mine",
    "loss": r"the losses is \[\"mse\".* on worker 0, .*\[\"other\".* on worker {last}",
    "formula": r"= 3\.? occurs: 0 on worker 0, .*1 on worker {last} \(.*unequal.py:\d+, in call\)",
    "optimizer": r"optimizers/optimizer/class is \"SGD\" on worker 0, .*\"Adam\" on worker {last}",
    "weight": r"step/loss_weights.* on worker 0",
    "accumulate": r"step/accumulate is 1 on worker 0, .*2 on worker {last}",
    "log_every": r"log_every is 4 on worker 0, .*3 on worker {last}",
    "seed": r"seed is null on worker 0, .*7 on worker {last}",
    "jit": r"jit is false on worker 0, .*true on worker {last}",
    "steps": r"steps is 8 on worker 0, .*9 on worker {last}",
    "batch": r"data/number of batches is 8 on worker 0",
    "shapes": r"the sizes of the first batch is .*8.* on worker 0, .*4.* on worker {last}",
    "dtype": r"data/batches/batch\S+ is .*float32.* on worker 0, .*float64.* on worker {last}",
    "hook": r"hooks/Evaluate/\S+ is absent on worker 0, .* on worker {last}",
    "evaluates": r"different things.* worker {last} \(\S+\): the creation of a variable",
    "hook_rate": r"optimizer/learning_rate is 0.01 on worker 0, .*0.5 on worker {last}",
    "raises": r"worker {last} \({address}\): it has failed with \w+: .*a bad example",
    "fails": r"worker {last} \({address}\): it has failed with ValueError: no such file: labels",
    "fails_building": r"worker {last} \({address}\): it has failed with ValueError: no such file",
    "fails_tracing": r"worker {last} \({address}\): it has failed with ValueError.*no such file",
    "fails_later": r"worker {last} \({address}\): it has failed with ZeroDivisionError",
    "killed": r"worker {last} \({address}\): it was lost",
    "killed_later": r"worker {last} \({address}\): it was lost",
    "exits_later": r"worker {last} \({address}\): it was lost",
}
BY_THEMSELVES = {
    "ends",
    "fails",
    "fails_building",
    "fails_tracing",
    "fails_later",
    "killed",
    "killed_later",
    "exits_later",
    "raises",
}
FAST = ["histogram", "clip_norm", "killed_later"]


def check(kind, workdir, workers, environment=None):
    addresses, found, seconds = run(kind, workdir, workers, environment=environment)
    last = workers - 1
    pattern = MESSAGES[kind].replace("{last}", str(last))
    pattern = pattern.replace("{address}", re.escape(addresses[last]))
    print(f"{kind}, {workers} workers: {seconds:.1f} s")
    said = "\n".join(f"--- worker {rank}:\n{done.stderr}" for rank, done in enumerate(found))
    for rank, done in enumerate(found):
        assert done.returncode != 0, said
        if rank < last or kind not in BY_THEMSELVES:
            named = re.search(pattern, done.stderr, re.IGNORECASE | re.DOTALL) is not None
            assert named, f"not by worker {rank}:\n{said}"
    assert seconds < SECONDS


@pytest.mark.parametrize("kind", FAST)
def test_a_difference_is_named_by_every_worker(kind, tmp_path):
    check(kind, tmp_path, 2)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("kind", MESSAGES)
def test_every_difference_is_named_by_every_worker(kind, workers, tmp_path):
    check(kind, tmp_path, workers)


# Which worker is late in what, and for how many seconds. The others leave in the meantime.
LATE = [
    ("loss", "0:looks:4"),
    ("histogram", "1:looks:4"),
    ("clip_norm", "0:reads:4"),
    ("clip_norm", "0:looks:7"),
    ("layer", "0:looks:4"),
    ("fails_building", "0:reads:4"),
    ("fails_tracing", "0:looks:8"),
    ("raises", "0:reads:7"),
    ("fails_later", "1:reads:7"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "late"), LATE)
def test_a_late_worker_names_the_difference_too(kind, late, tmp_path):
    check(kind, tmp_path, 3, {"LATE": late})


@pytest.mark.slow
def test_equal_workers_train(tmp_path):
    _, found, _ = run("", tmp_path, 3)
    for done in found:
        assert done.returncode == 0 and "ended at 8" in done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hangs", "all_hang"])
def test_the_watchdog_shows_where_each_worker_is_and_ends_all_of_them(kind, tmp_path):
    """Worker 1 sleeps for 1,000 s after step 3, and worker 0 waits for it, or sleeps, too."""
    _, found, seconds = run(kind, tmp_path, 2)
    sleep = next(
        n for n, line in enumerate(SCRIPT.read_text().splitlines(), 1) if '"hangs":' in line
    )
    for rank, done in enumerate(found):
        assert done.returncode != 0 and "step 3" in done.stdout and "step 4" not in done.stdout
        assert "The stacks of all threads follow" in done.stderr
        stacks = (tmp_path / "stacks" / f"worker_{rank}.txt").read_text()
        for text in (done.stderr, stacks):
            assert "no step has finished for" in text and "(most recent call first)" in text
            sleeps = kind == "all_hang" or rank == 1
            assert (f'unequal.py", line {sleep} in <lambda>' in text) == sleeps
            assert 'unequal.py", line' in text
    assert 70 in [done.returncode for done in found]
    assert 20 < seconds < 20 + SECONDS


@pytest.mark.slow
def test_a_worker_that_hangs_is_named_after_the_timeout(tmp_path):
    """Worker 1 sleeps; the watchdogs would write stacks after 20 s only."""
    environment = {"TFLOSS_WORKER_TIMEOUT": "10"}
    addresses, (done, other), _ = run("hangs", tmp_path, 2, environment=environment)
    assert done.returncode != 0 and other.returncode != 0
    assert "has waited 10 s at: step 3" in done.stderr
    assert f"It waits for worker 1 ({addresses[1]})" in done.stderr
    assert "set TFLOSS_WORKER_TIMEOUT=SECONDS" in done.stderr


@pytest.mark.slow
def test_a_collective_that_waits_has_the_same_timeout(tmp_path):
    """Worker 1 sleeps in its data, inside of a call of several steps."""
    environment = {"TFLOSS_WORKER_TIMEOUT": "10"}
    addresses, (done, other), seconds = run("sleeps", tmp_path, 2, environment=environment)
    assert done.returncode != 0 and other.returncode != 0
    assert f"Worker 0 ({addresses[0]}) has waited 10 s in a collective" in done.stderr
    assert f"Worker 0 ({addresses[0]}): it has failed with WorkerError" in other.stderr
    assert 'unequal.py"' in other.stderr and "in sleep" in other.stderr  # its stacks
    assert seconds < 20 + 2 * SECONDS
