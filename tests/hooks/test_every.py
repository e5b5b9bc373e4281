from fractions import Fraction

import pytest

from tfloss.hooks import Every, OnSteps, RunInfo


def due_steps(every, run, first=None):
    """All due steps of a run, found step by step and by next_step."""
    every.start(run)
    start = run.start if first is None else first
    asked = [step for step in range(start + 1, run.steps + 1) if every.due(step)]
    jumped, step = [], every.next_step(start)
    while step is not None and step <= run.steps:
        jumped.append(step)
        step = every.next_step(step)
    assert jumped == asked
    return asked


def test_steps():
    assert due_steps(Every(steps=100), RunInfo(0, 350)) == [100, 200, 300]


def test_step_0_is_never_due():
    every = Every(steps=5)
    every.start(RunInfo(0, 10))
    assert not every.due(0)


def test_an_epoch_of_1437_examples_in_batches_of_32_has_44_90625_steps():
    # k * 44.90625: 44.9, 89.8, 134.7, 179.6, 224.5, 269.4
    run = RunInfo(0, 270, 32, 1437 / 32)
    assert due_steps(Every(epochs=1), run) == [45, 90, 135, 180, 225, 270]


def test_epochs_do_not_drift():
    # 32 epochs are exactly 1437 steps, 64 are 2874; not one later.
    every = Every(epochs=32)
    assert due_steps(every, RunInfo(0, 3000, 32, 1437 / 32)) == [1437, 2874]
    # 1437 / 50 = 28.74 is no binary fraction: 50 epochs are 1437 steps all the same.
    assert due_steps(Every(epochs=50), RunInfo(0, 1437, 50, 1437 / 50)) == [1437]
    # 1797 / 7 has no short decimals either: 7 epochs are 1797 steps.
    assert due_steps(Every(epochs=7), RunInfo(0, 5400, 7, 1797 / 7)) == [1797, 3594, 5391]


def test_a_tenth_of_an_epoch_is_a_tenth():
    # 0.1 * 30 = 3 exactly, though the float 0.1 is a little more than 1/10.
    assert due_steps(Every(epochs=0.1), RunInfo(0, 12, None, 30.0)) == [3, 6, 9, 12]


def test_percent_of_250():
    assert due_steps(Every(percent=10), RunInfo(0, 250)) == list(range(25, 251, 25))


def test_percent_with_fractional_periods():
    # 0.3 * 11 = 3.3: ceil of 3.3, 6.6, 9.9
    assert due_steps(Every(percent=30), RunInfo(0, 11)) == [4, 7, 10]
    assert due_steps(Every(percent=Fraction(100, 3)), RunInfo(0, 10)) == [4, 7, 10]


def test_a_period_shorter_than_a_step_is_due_at_every_step():
    assert due_steps(Every(percent=1), RunInfo(0, 4)) == [1, 2, 3, 4]


def test_percent_of_a_run_of_0_steps_is_never_due():
    assert due_steps(Every(percent=10), RunInfo(0, 0)) == []


def test_examples():
    # 100 examples in batches of 32: 3.125 steps
    assert due_steps(Every(examples=100), RunInfo(0, 13, 32)) == [4, 7, 10, 13]


@pytest.mark.parametrize(
    "every",
    [
        lambda: Every(steps=7),
        lambda: Every(epochs=1),
        lambda: Every(percent=3.7),
        lambda: Every(examples=1000),
    ],
)
def test_a_resumed_run_is_due_at_the_steps_of_an_uninterrupted_one(every):
    uninterrupted = due_steps(every(), RunInfo(0, 500, 32, 1437 / 32))
    resumed = due_steps(every(), RunInfo(137, 500, 32, 1437 / 32))
    assert resumed == [step for step in uninterrupted if step > 137]


def test_seconds_start_again_when_due(clock):
    every = Every(seconds=10, clock=clock)
    every.start(RunInfo(0, 100))
    assert every.next_step(0) is None
    due = []
    for step, now in enumerate([1009.9, 1010.0, 1015.0, 1019.9, 1023.0, 1032.9, 1033.0], 1):
        clock.now = now
        if every.due(step):
            due.append(now)
    assert due == [1010.0, 1023.0, 1033.0]


def test_seconds_count_from_the_start_of_a_run(clock):
    every = Every(seconds=10, clock=clock)
    clock.now += 60  # building the model
    every.start(RunInfo(0, 100))
    assert not every.due(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"Every\(\): give exactly one of steps, seconds, epochs, examples, percent"),
        ({"steps": 5, "seconds": 2}, r"Every\(steps=5, seconds=2\): give exactly one"),
        ({"steps": 0}, r"Every\(steps=0\): steps must be positive"),
        ({"seconds": -1}, r"Every\(seconds=-1\): seconds must be positive"),
        ({"epochs": float("nan")}, r"epochs must be positive and finite"),
        ({"epochs": float("inf")}, r"epochs must be positive and finite"),
        ({"steps": 2.5}, r"steps must be an integer"),
        ({"examples": "1000"}, r"Every\(examples='1000'\): examples must be a number"),
        ({"steps": True}, r"steps must be a number"),
        ({"percent": 101}, r"percent must be at most 100"),
    ],
)
def test_invalid_periods_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        Every(**arguments)


def test_the_error_for_a_number_without_a_unit_says_what_to_write():
    with pytest.raises(ValueError, match=r"^Every\(5\): 5 of what\? Write Every\(steps=5\)\.$"):
        Every(5)


def test_integers_may_be_written_as_floats():
    assert due_steps(Every(steps=1e2), RunInfo(0, 200)) == [100, 200]


@pytest.mark.parametrize(
    ("every", "missing"),
    [
        (Every(epochs=1), r"steps_per_epoch. Give train\(\) steps_per_epoch=..., or use"),
        (Every(examples=10), "batch_size. Use"),
    ],
)
def test_the_error_names_what_the_run_does_not_know(every, missing):
    with pytest.raises(ValueError, match=rf"doesn't know its {missing} Every\(steps="):
        every.start(RunInfo(0, 100))


def test_an_empty_epoch_is_refused():
    with pytest.raises(ValueError, match="steps_per_epoch must be positive, got 0.0"):
        Every(epochs=1).start(RunInfo(0, 100, 32, 0.0))


def test_a_trigger_must_be_started_first(clock):
    with pytest.raises(
        RuntimeError, match=r"Every\(epochs=1\).next_step\(\) was called before start"
    ):
        Every(epochs=1).next_step(0)
    with pytest.raises(RuntimeError, match=r"Every\(seconds=2.5\).due\(\) was called before start"):
        Every(seconds=2.5, clock=clock).due(1)


def test_on_steps_is_due_at_the_given_steps_only():
    assert due_steps(OnSteps(110, 100), RunInfo(0, 200)) == [100, 110]
    assert due_steps(OnSteps(100, 110), RunInfo(105, 200)) == [110]
    assert OnSteps(100, 110).next_step(110) is None


@pytest.mark.parametrize("step", [0, -1, 1.5, True])
def test_on_steps_refuses_other_values(step):
    with pytest.raises(ValueError, match="integer of at least 1"):
        OnSteps(step)


def test_progress_counts_complete_periods_and_the_steps_since():
    every = Every(epochs=1)
    with pytest.raises(RuntimeError, match="start"):
        every.progress(1)
    every.start(RunInfo(0, 100, None, 2.5))  # due at 3, 5, 8, 10
    assert [every.progress(step) for step in (0, 2, 3, 4, 5, 9)] == [
        (0, 0),
        (0, 2),
        (1, 0),
        (1, 1),
        (2, 0),
        (3, 1),
    ]
