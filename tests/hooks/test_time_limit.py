import keras
import pytest

import tfloss
from tests.toys import Line, rows
from tfloss.errors import Preempted, TimeLimitReached
from tfloss.hooks import Every, Hook, SaveCheckpoint, TimeLimit


class Tick(Hook):
    """Makes each step take a minute."""

    every = Every(steps=1)

    def __init__(self, clock):
        self.clock, self.steps = clock, []

    def after_step(self, step):
        self.steps.append(step)
        self.clock.now += 60


def trainer(workdir, clock, minutes, *hooks):
    limit, tick = TimeLimit(minutes, clock=clock), Tick(clock)
    return tfloss.Trainer(
        Line(), keras.optimizers.SGD(0.1), workdir=workdir, jit=False, default_hooks=False,
        hooks=[limit, tick, SaveCheckpoint(), *hooks],
    ), tick  # fmt: skip


DATA = rows([1.0, 2.0], 2)


def test_it_ends_with_a_checkpoint_and_the_next_process_resumes(tmp_path, clock, capsys):
    one, tick = trainer(tmp_path, clock, 2.5)
    with pytest.raises(TimeLimitReached) as ended:
        one.train(DATA, 10)
    assert ended.value.code == 124 and isinstance(ended.value, Preempted)
    # At step k the clock says k - 1 minutes: 2 are not over, 3 are.
    assert one.step == 4 and one.checkpoints.steps() == [4]
    assert tick.steps == [1, 2, 3, 4]  # hooks after the limit run at the last step too
    out = capsys.readouterr().err
    assert "2.5 minutes are over at step 4. Saving a checkpoint, then exiting with code" in out

    again, _ = trainer(tmp_path, clock, 100)
    again.train(DATA, 10)
    assert again.step == 10
    assert "resuming at step 4" in capsys.readouterr().err


def test_it_counts_from_the_first_call_of_train(tmp_path, clock):
    one, tick = trainer(tmp_path, clock, 4)
    one.train(DATA, 3)
    with pytest.raises(TimeLimitReached):
        one.train(DATA, 10)
    assert one.step == 5 and tick.steps == [1, 2, 3, 4, 5]


def test_a_run_that_reached_its_last_step_ends_normally(tmp_path, clock):
    one, _ = trainer(tmp_path, clock, 1)
    assert one.train(DATA, 2).step == 2


def test_it_needs_a_workdir(clock):
    with pytest.raises(ValueError, match="no directory to save"):
        trainer(None, clock, 1)[0].train(DATA, 1)
    for minutes in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="positive and finite"):
            TimeLimit(minutes)
