import pytest

from tfloss.trainer.stopwatch import Stopwatch


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_the_parts_sum_to_the_whole_and_the_rest_is_the_steps():
    clock = Clock()
    watch = Stopwatch(clock)
    clock.now += 6
    watch.waited(2)
    with watch.during("hooks"):
        clock.now += 1
        with watch.during("checkpoint"):  # a hook that saves: its time counts once
            clock.now += 1
    with watch.during("checkpoint"):
        clock.now += 2
    assert watch.seconds() == {"input": 2, "step": 4, "hooks": 2, "checkpoint": 2}
    assert watch.fractions() == {"input": 0.2, "step": 0.4, "hooks": 0.2, "checkpoint": 0.2}


def test_what_raises_is_measured_and_a_second_reading_is_of_the_time_between():
    clock = Clock()
    watch = Stopwatch(clock)
    clock.now += 5
    before = watch.seconds()
    with pytest.raises(OSError), watch.during("checkpoint"):
        clock.now += 1
        raise OSError
    clock.now += 3
    assert watch.fractions(before)["checkpoint"] == 0.25
    watch.start()
    assert set(watch.seconds().values()) == {0.0}
    assert watch.fractions()["input"] == 0.0
