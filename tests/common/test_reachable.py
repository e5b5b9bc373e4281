"""Objects are found wherever a function can reach them, and under a readable path."""

import functools
import random

import numpy as np
import pytest

from tfloss.common.reachable import find_objects

GLOBAL = random.Random(1)


class Holder:
    def __init__(self, rng):
        self.parts = {"a": [rng]}

    def method(self):
        return 1

    def __call__(self):
        return GLOBAL.random()


def closure():
    rng = random.Random(1)

    def inner(x):
        return [rng.random() for _ in x]

    return inner


def default(rng=GLOBAL):
    return rng


@pytest.mark.parametrize(
    ("root", "path"),
    [
        (closure(), "rng"),
        (lambda: GLOBAL.random(), "GLOBAL"),
        (lambda: (lambda: GLOBAL)(), "GLOBAL"),
        (default, "default 0"),
        (Holder(random.Random(1)).method, "self.parts['a'][0]"),
        (functools.partial(int, random.Random(1)), "(0)"),
        ({"a": (1, random.Random(1))}, "['a'][1]"),
    ],
)
def test_the_path_of_what_is_found(root, path):
    assert path in [found for found, _ in find_objects(root, random.Random)]


def test_a_callable_object_is_searched_too():
    found = dict(find_objects(Holder(None), random.Random))
    assert found == {"__call__.GLOBAL": GLOBAL}


def test_circles_and_large_objects_end():
    circle = []
    circle += [circle, np.zeros(5), list(range(1000))]
    assert list(find_objects(circle, random.Random)) == []
    deep = random.Random(1)
    for _ in range(50):
        deep = [deep]
    assert list(find_objects(deep, random.Random)) == []
