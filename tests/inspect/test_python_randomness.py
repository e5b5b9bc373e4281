"""Generators that were drawn from are named."""

import random

import keras
import numpy as np
import tensorflow as tf

from tfloss.inspect.python_randomness import RandomStates


def test_each_generator_is_told_apart():
    rngs = {
        "numpy": np.random.default_rng(1),
        "old": np.random.RandomState(1),
        "python": random.Random(1),
        "keras": keras.random.SeedGenerator(1),
        "tf": tf.random.Generator.from_seed(1),
    }
    states = RandomStates(rngs)
    assert states.moved() == []
    rngs["numpy"].random()
    assert states.moved() == ["['numpy'] (Generator)"]
    rngs["old"].rand()
    rngs["python"].random()
    rngs["keras"].next()
    rngs["tf"].uniform([])
    assert len(states.moved()) == 5
    np.random.normal()
    random.random()
    assert states.moved()[:2] == ["Python's random", "np.random"]
    states.restore()
    assert len(states.moved()) == 5
