import pytest

from tfloss.common.activity import Activity
from tfloss.hooks.step_speed import StepSpeed


def _speed(clock):
    speed = StepSpeed(clock, window=5.0)
    speed.restart(100)
    return speed


def test_steps_of_the_last_seconds_count(clock):
    speed = _speed(clock)
    for step in range(101, 121):
        clock.now += 1.0 if step <= 110 else 0.25
        speed.completed(step)
    assert speed.steps_per_second == pytest.approx(13 / 5.5)  # from step 107 on
    for step in range(121, 141):
        clock.now += 0.25
        speed.completed(step)
    assert speed.steps_per_second == 4.0
    assert speed.seconds_between_calls == 0.25
    clock.now += 60  # a call of many steps is longer than the window
    speed.completed(740)
    assert speed.steps_per_second == pytest.approx(10, rel=0.1)


def test_an_activity_slows_the_run_and_not_its_steps(clock):
    speed = _speed(clock)
    for step in range(101, 105):
        clock.now += 1.0
        speed.completed(step)
        speed.activity(Activity("evaluating"))
        clock.now += 1.0
        speed.activity(Activity("tracing"))  # inside of it
        clock.now += 1.0
        speed.activity(Activity("evaluating"))
        speed.activity(None)
    assert speed.steps_per_second == 1.0
    assert speed.overhead == 3.0  # 12 s for 4 s of steps


def test_steps_of_a_call_that_compiles_have_no_speed(clock):
    speed = _speed(clock)
    speed.activity(Activity("compiling", runs_steps=True))
    clock.now += 30.0
    speed.activity(None)
    speed.completed(1100)
    assert speed.steps_per_second is None
    clock.now += 0.5
    speed.completed(1101)
    assert (speed.steps_per_second, speed.overhead) == (2.0, 1.0)
