"""Lines that draw from Python's and NumPy's generators are found, and nothing is drawn."""

import random
import sys
import threading

import numpy as np
import pytest

from tfloss.inspect.frozen_randomness import drawn_lines


def _quiet():
    return sum(range(10))


@pytest.mark.parametrize(
    "draw",
    [
        lambda: np.random.normal(),
        lambda: np.random.randint(5, size=[3]),
        lambda: np.random.normal(size=624 * 4),
        lambda: random.random(),
        lambda: random.shuffle([1, 2, 3]),
    ],
)
def test_a_line_that_draws_is_found_and_its_numbers_are_given_back(draw):
    np.random.seed(0)
    random.seed(0)
    expected = np.random.normal(), random.random()
    np.random.seed(0)
    random.seed(0)
    tracing = sys.gettrace()
    with drawn_lines() as lines:
        _quiet()
        draw()
        _quiet()
    assert len(lines) == 1 and lines[0].endswith("in <lambda>") and __file__ in lines[0]
    assert (np.random.normal(), random.random()) == expected
    assert sys.gettrace() is tracing


def test_the_rest_of_a_line_after_a_call_is_blamed():
    with drawn_lines() as lines:
        _quiet() * np.random.normal()
    with open(__file__) as file:
        number = next(i for i, line in enumerate(file, 1) if "_quiet() * np" in line)
    assert lines == [f"{__file__}:{number}, in test_the_rest_of_a_line_after_a_call_is_blamed"]


def test_a_thread_that_is_started_inside_is_watched():
    def draw():
        np.random.normal()

    with drawn_lines() as lines:
        thread = threading.Thread(target=draw)
        thread.start()
        thread.join()
    assert [line.rpartition(" ")[2] for line in lines] == ["draw"]


def test_other_generators_and_the_end_of_an_error_are_quiet():
    with pytest.raises(ZeroDivisionError), drawn_lines() as lines:
        np.random.default_rng(0).normal()
        raise ZeroDivisionError
    assert lines == []
