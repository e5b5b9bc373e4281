"""A run that hangs shows where."""

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import keras
import pytest

import tfloss
from tests.toys import Line, rows
from tfloss.hooks import Every, Hook, Watchdog


class FakeAgreement:
    """One of several workers: what it tells, and who listens."""

    def __init__(self, index=0, workers=2):
        self.index, self.workers = index, workers
        self.told, self.listeners = [], {}

    def tell(self, kind, text):
        self.told.append((kind, text))

    def listen(self, kind, listener):
        self.listeners[kind] = listener


def watch(hook, workdir=None, agreement=None):
    hook.trainer = SimpleNamespace(
        step=0, workdir=workdir, agreement=agreement or FakeAgreement(workers=1)
    )
    hook.before_train()
    return hook.trainer


def wait(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_the_stacks_of_a_hanging_run_go_to_stderr_and_the_workdir_once(tmp_path, capfd, messages):
    agreement = FakeAgreement(index=1)
    hook = Watchdog(seconds=0.3)
    watch(hook, tmp_path, agreement)
    path = tmp_path / "stacks" / "worker_1.txt"
    wait(lambda: path.exists() and "test_watchdog.py" in path.read_text())
    time.sleep(0.6)  # it is still the same step
    hook.after_train()

    text = path.read_text()
    assert "no step has finished for 0 s after step 0 on worker 1\n" in text
    assert text.count("no step has finished") == 1
    assert "Thread 0x" in text and "in wait" in text
    assert "test_watchdog.py" in capfd.readouterr().err
    assert messages == [
        "no step has finished for 0 s after step 0 on worker 1. The stacks of all threads follow; "
        f"they are in {path}, too:"
    ]
    assert [kind for kind, _ in agreement.told] == ["stacks"]


def test_a_worker_writes_its_stacks_when_another_one_hangs(tmp_path):
    agreement = FakeAgreement()
    hook = Watchdog()
    watch(hook, tmp_path, agreement)
    agreement.listeners["stacks"](1, "no step has finished on worker 1")
    hook.after_train()
    agreement.listeners["stacks"](1, "too late")

    text = (tmp_path / "stacks" / "worker_0.txt").read_text()
    assert "no step has finished on worker 1" in text and "too late" not in text


def test_it_ends_the_process_if_it_is_told_to(messages):
    codes = []
    ended = threading.Event()
    hook = Watchdog(seconds=0.2, exit=True, leave=lambda code: (codes.append(code), ended.set()))
    hook_seconds = "tfloss.hooks.watchdog._OTHERS_SECONDS"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hook_seconds, 0.1)
        watch(hook)
        assert ended.wait(10)
        hook.after_train()
    assert codes[0] == 70 and "ends with exit code 70" in messages[-1]


@pytest.mark.parametrize(
    ("longest", "limit"),
    [
        (None, 600.0),  # before the second step
        (0.1, 60.0),
        (10.0, 100.0),
        (100.0, 600.0),
        (500.0, 1000.0),  # an evaluation takes that long
    ],
)
def test_too_long_depends_on_the_longest_time_so_far(longest, limit):
    hook = Watchdog()
    hook._longest = longest
    assert hook.limit == limit


def test_steps_that_finish_are_no_alarm(tmp_path):
    hook = Watchdog(seconds=0.6)
    trainer = watch(hook, tmp_path)
    for _ in range(10):
        time.sleep(0.15)
        trainer.step += 1
    hook.after_train()
    assert not (tmp_path / "stacks").exists()
    assert 0.1 < hook._longest < 0.6


def test_a_workdir_that_can_not_be_written_leaves_standard_error(tmp_path, messages):
    (tmp_path / "stacks").write_text("a file")
    hook = Watchdog(seconds=0.2)
    watch(hook, tmp_path)
    wait(lambda: len(messages) == 2)
    hook.after_train()
    assert "worker_0.txt can't be written" in messages[1]


@pytest.mark.parametrize("arguments", [{"seconds": 0}, {"factor": float("nan")}])
def test_impossible_arguments_are_errors(arguments):
    with pytest.raises(ValueError, match=f"Watchdog: {next(iter(arguments))}="):
        Watchdog(**arguments)


def test_a_single_process_can_use_it(tmp_path):
    path = tmp_path / "stacks" / "worker_0.txt"

    class Slow(Hook):
        every = Every(steps=1)

        def after_step(self, step):
            if step == 3:
                wait(lambda: path.exists() and "in after_step" in path.read_text())

    trainer = tfloss.Trainer(
        Line(), keras.optimizers.SGD(0.1), workdir=tmp_path, jit=False,
        hooks=[Slow(), Watchdog(seconds=0.5)],
    )  # fmt: skip
    trainer.train(rows([1.0, 2.0], 2).repeat(), 4)

    text = path.read_text()
    assert f'File "{Path(__file__)}", line' in text and "in after_step" in text
    assert not any(one.name == "tfloss-watchdog" for one in threading.enumerate())
