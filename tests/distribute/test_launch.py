"""`tfloss launch`, with real processes."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from tfloss.distribute import launch

INDEX = "import json, os; index = json.loads(os.environ['TF_CONFIG'])['task']['index']\n"
SLEEP = "import time\nwhile True: time.sleep(0.05)\n"
# Workers start at different times on a busy machine, so one waits until the others are ready.
MEET = """
import pathlib, time
def ready():
    pathlib.Path(__file__ + str(index)).touch()
def wait_for(*others):
    while not all(pathlib.Path(__file__ + str(other)).exists() for other in others):
        time.sleep(0.01)
"""


@pytest.fixture
def start(tmp_path):
    """Starts the launcher with a script, and ends it with the test."""
    with contextlib.ExitStack() as stack:

        def begin(code, *options, workers=2, **environ):
            script = tmp_path / "script.py"
            script.write_text(INDEX + code)
            process = subprocess.Popen(
                [sys.executable, "-m", "tfloss.cli", "launch", f"--workers={workers}", *options]
                + ["--", sys.executable, str(script), "--workers=9"],
                env=os.environ | environ,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=heard,
            )
            stack.callback(process.communicate)
            stack.callback(process.terminate)
            return process

        yield begin


def heard():
    """In the new process: the tests may have been started by nohup, or in the background."""
    for signum in (signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)


def finish(process, timeout=60):
    """The exit code, and the lines of standard output and error, sorted."""
    out, error = process.communicate(timeout=timeout)
    return process.returncode, sorted(out.splitlines()), sorted(error.splitlines())


def test_lines_carry_the_number_of_their_worker(start):
    code = "import sys; print('one', index); print('two'); print('oops', file=sys.stderr)\n"
    code += "print(sys.argv[1:], end='')"

    code, out, error = finish(start(code))

    assert code == 0
    assert out == [
        *("[0] ['--workers=9']", "[0] one 0", "[0] two"),
        *("[1] ['--workers=9']", "[1] one 1", "[1] two"),
    ]
    assert error == ["[0] oops", "[1] oops"]


def test_lines_come_at_once(start):
    process = start("print('here')\n" + SLEEP, workers=1)

    assert process.stdout.readline() == "[0] here\n"


def test_all_are_told_of_the_same_workers(start):
    code = "print(json.loads(os.environ['TF_CONFIG'])['cluster'])"

    code, out, _ = finish(start(code, workers=3, TF_CONFIG="of another cluster"))

    assert code == 0 and len({line[4:] for line in out}) == 1
    ports = re.findall(r"'127\.0\.0\.1:(\d+)'", out[0])
    assert len(set(ports)) == 3


def test_they_share_a_secret_that_is_new_each_time_or_that_of_the_user(start):
    code = "print(os.environ['TFLOSS_CLUSTER_SECRET'])"
    found = [{line[4:] for line in finish(start(code))[1]} for _ in range(2)]

    assert [len(one) for one in found] == [1, 1] and found[0] != found[1]
    assert all(len(text) == 64 for one in found for text in one)
    assert finish(start(code, TFLOSS_CLUSTER_SECRET="mine"))[1] == ["[0] mine", "[1] mine"]


def test_one_that_fails_ends_all(start):
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit('told to stop'))\n"
        "ready()\n"
        "if index == 1: wait_for(0, 2); sys.exit(7)\n"
    )
    code, _, error = finish(start(MEET + code + SLEEP, workers=3))

    assert code == 7
    assert error == [
        *("[0] told to stop", "[2] told to stop"),
        "tfloss: worker 1 ended with exit code 7; all workers have ended",
    ]


def test_one_that_ends_well_leaves_the_others_alone(start):
    code = "import time\nif index: time.sleep(1); print('done')"

    assert finish(start(code)) == (0, ["[1] done"], [])


def test_what_does_not_end_is_killed_with_all_it_started(start, tmp_path):
    code = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '1000'])\n"
        "print(child.pid)\n"
        "ready()\n"
        "if index: wait_for(0); print(time.time()); sys.exit(1)\n"
    )
    code, out, _ = finish(start(MEET + code + SLEEP, "--grace=1"))

    ended = time.time()
    assert code == 1
    (failed,) = [float(line.split()[1]) for line in out if "." in line]
    assert ended - failed > 1.0
    pids = [line.split()[1] for line in out if "." not in line]
    assert len(pids) == 2 and all(_is_gone(int(pid)) for pid in pids)


def _is_gone(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_are_passed_on(start, signum):
    code = (
        "import signal, sys\n"
        f"signal.signal({int(signum)}, lambda *_: (print('saved'), sys.exit(75)))\n"
        "print('ready')\n"
    )
    process = start(code + SLEEP, "--max-restarts=3")
    assert {process.stdout.readline() for _ in range(2)} == {"[0] ready\n", "[1] ready\n"}

    process.send_signal(signum)

    # 75: preempted, start me again later. Not now: the launcher itself was told.
    assert finish(process) == (75, ["[0] saved", "[1] saved"], [])


def test_workers_killed_by_a_signal_that_is_passed_on(start):
    process = start("print('ready')\n" + SLEEP)
    process.stdout.readline(), process.stdout.readline()
    process.send_signal(signal.SIGTERM)

    assert finish(process) == (128 + signal.SIGTERM, [], [])


def test_a_second_signal_kills(start):
    code = "import signal\nsignal.signal(2, lambda *_: print('no'))\nprint('ready')\n"
    process = start(code + SLEEP)
    process.stdout.readline(), process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert {process.stdout.readline() for _ in range(2)} == {"[0] no\n", "[1] no\n"}
    process.send_signal(signal.SIGINT)

    assert finish(process, timeout=20)[0] == 128 + signal.SIGKILL  # before 30 s of grace


def test_all_start_again_when_one_is_killed(start, tmp_path):
    code = (
        "import pathlib, signal, sys\n"
        f"started = pathlib.Path({str(tmp_path)!r}, f'started{{index}}')\n"
        "again = started.exists()\n"
        "started.touch()\n"
        "print('again' if again else 'first', os.getpid(), os.environ['TF_CONFIG'])\n"
        "if again: sys.exit(0)\n"
    )
    process = start(code + SLEEP, "--max-restarts=2")
    lines = sorted(process.stdout.readline() for _ in range(2))
    os.kill(int(lines[1].split()[2]), signal.SIGKILL)

    code, out, error = finish(process)

    assert code == 0
    assert [line.split()[:2] for line in out] == [["[0]", "again"], ["[1]", "again"]]
    ports = [re.findall(r"127.0.0.1:(\d+)", line) for line in (lines[0], out[0])]
    assert len(ports[0]) == 2 and not set(ports[0]) & set(ports[1])  # new ones
    assert error == [
        "tfloss: worker 1 was killed by SIGKILL; restarting all 2 workers (restart 1 of 2)"
    ]


def test_restarts_end(start):
    code, out, error = finish(start("print('try'); raise SystemExit(5)", "--max-restarts=2"))

    assert code == 5
    # Either worker may be the first to fail.
    assert sorted(re.sub("worker [01]", "worker *", line) for line in error) == [
        "tfloss: worker * ended with exit code 5; all workers have ended",
        "tfloss: worker * ended with exit code 5; restarting all 2 workers (restart 1 of 2)",
        "tfloss: worker * ended with exit code 5; restarting all 2 workers (restart 2 of 2)",
    ]


def test_a_reader_that_goes_away_ends_the_workers(start):
    process = start("import time\nwhile True: print('x' * 1000); time.sleep(0.01)\n")
    process.stdout.readline()
    process.stdout.close()

    process.stdout = None
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1 and "BrokenPipeError" in error


def test_a_program_that_is_not_there(capsys):
    assert launch.run(["no-such-program"], workers=2, max_restarts=5) == 127
    assert capsys.readouterr().err == (
        "tfloss: can't start 'no-such-program': No such file or directory\n"
    )
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # as before


@pytest.mark.parametrize(
    ("visible", "shares"),
    [
        ("0,1,2,3", ["0,1", "2,3"]),
        ("GPU-a,GPU-b,GPU-c", ["GPU-a", "GPU-b"]),
        ("5", ["-1", "-1"]),
        ("-1", [None, None]),
        ("", [None, None]),
    ],
)
def test_the_gpus_are_shared_out(visible, shares, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    found = launch._gpu_variables(2)

    assert [variables.get("CUDA_VISIBLE_DEVICES") for variables in found] == shares
    assert ("2 workers can't share 1 GPUs" in capsys.readouterr().err) == (visible == "5")


def test_the_launcher_does_not_import_tensorflow():
    code = (
        "import sys; from tfloss import cli\n"
        "assert cli.main(['launch', '--workers=1', '--', 'true']) == 0\n"
        "assert not {'tensorflow', 'keras', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_tensorflow_workers_start_again_when_one_is_killed(start, tmp_path):
    code = (
        "import pathlib, signal\n"
        "import tensorflow as tf\n"
        "from tfloss import make_strategy\n"
        "strategy = make_strategy()\n"
        "def one():\n"
        "    return tf.distribute.get_replica_context().all_reduce('sum', tf.constant(1.0))\n"
        "@tf.function\n"
        "def add():\n"
        "    return strategy.run(one)\n"
        f"died = pathlib.Path({str(tmp_path)!r}, 'died')\n"
        "first = not died.exists()\n"
        "for step in range(10):\n"
        "    total = float(add())\n"
        "    if first and index == 1 and step == 5:\n"
        "        died.touch(); os.kill(os.getpid(), signal.SIGKILL)\n"
        "print('total', total)\n"
    )
    code, out, error = finish(start(code, "--max-restarts=1"), timeout=150)

    assert (code, out) == (0, ["[0] total 2.0", "[1] total 2.0"]), error
    assert (
        "tfloss: worker 1 was killed by SIGKILL; restarting all 2 workers (restart 1 of 1)" in error
    )


def test_programs_with_the_same_seed_get_other_ports():
    """Two of them would choose the same ports between the search and the start."""
    found = []
    for _ in range(2):
        random.seed(0)
        found.append(launch.free_ports(5))
    assert found[0] != found[1]
