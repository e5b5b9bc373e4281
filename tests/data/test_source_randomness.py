"""Randomness in the functions of a `Source`, which a resumed run would not repeat, is found."""

import random
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.toys import Line
from tfloss.data import Source
from tfloss.errors import DataError

ARRAYS = {"x": np.arange(24, dtype=np.float32)}


class Items:
    """A sequence of 24 items, each with something added."""

    def __init__(self, added):
        self.added = added

    def __len__(self):
        return 24

    def __getitem__(self, index):
        return {"x": np.float32(index + self.added(index))}


def plus(number):
    return lambda example: {"x": example["x"] + number()}


def in_python(function):
    """A map that calls Python code."""

    def mapped(example):
        value = tf.numpy_function(lambda x: np.float32(x + function()), [example["x"]], tf.float32)
        return {"x": tf.ensure_shape(value, example["x"].shape)}

    return mapped


def layer_noise():
    layer = keras.layers.GaussianNoise(1.0)
    return lambda batch: {"x": layer(batch["x"], training=True)}


def flip():
    layer = keras.layers.RandomFlip("horizontal", seed=1)
    return lambda batch: {"x": layer(batch["x"][:, None, None, None])[:, 0, 0, 0]}


def generator():
    own = tf.random.Generator.from_seed(1)
    return plus(lambda: own.uniform([]))


def numpy_generator():
    rng = np.random.default_rng(1)
    return in_python(lambda: rng.random())


RANDOM = {
    "tf.random": (lambda: {"map": plus(lambda: tf.random.uniform([], seed=1))}, "RandomUniform"),
    "batch": (lambda: {"batch_map": plus(lambda: tf.random.normal([]))}, "RandomStandardNormal"),
    "noise layer": (lambda: {"batch_map": layer_noise()}, r"\w+VariableOp"),
    "flip layer": (lambda: {"batch_map": flip()}, r"\w+VariableOp"),
    "tf generator": (lambda: {"map": generator()}, "Stateful|RngReadAndSkip"),
    "np at trace": (lambda: {"map": plus(np.random.rand)}, "np.random once, when it is traced"),
    "np": (lambda: {"map": in_python(np.random.rand)}, r"PyFunc \(.*\) draws from np.random"),
    "random": (lambda: {"batch_map": in_python(random.random)}, "draws from Python's random"),
    "own": (lambda: {"map": numpy_generator()}, r"draws from .*rng \(Generator\)"),
    "fresh": (
        lambda: {"map": in_python(lambda: np.random.default_rng().random())},
        "returns something else each time",
    ),
}
ITEMS = {
    "np": (lambda i: np.random.rand(), "Items.__getitem__ draws from np.random"),
    "random": (lambda i: random.random(), "Items.__getitem__ draws from Python's random"),
    "own": (
        (lambda rng: lambda i: rng.random())(np.random.default_rng(1)),
        r"Items.__getitem__ draws from added.rng \(Generator\)",
    ),
    "rare": (
        (lambda rng: lambda i: float(rng.random() < 1e-9))(random.Random(1)),
        r"Items.__getitem__ draws from added.rng \(Random\)",
    ),
    "fresh": (lambda i: np.random.default_rng().random(), "returns another item each time"),
    "tf": (lambda i: float(tf.random.uniform([])), "returns another item each time"),
}


def sources():
    for name, (options, expected) in RANDOM.items():
        make = lambda options=options: Source(ARRAYS, batch_size=4, **options())  # noqa: E731
        yield pytest.param(make, expected, id=name)
    for name, (added, expected) in ITEMS.items():
        make = lambda added=added: Source(Items(added), batch_size=4)  # noqa: E731
        yield pytest.param(make, expected, id=f"items {name}")


@pytest.mark.parametrize(("make", "expected"), list(sources()))
def test_randomness_that_is_not_repeated_is_found(make, expected):
    source = make()
    states = random.getstate(), np.random.get_state()[1].tolist()
    (found,) = source.randomness()
    assert re.search(expected, found), found
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states


@pytest.mark.parametrize(
    "make",
    [
        lambda: Source(ARRAYS, batch_size=4),
        lambda: Source(
            ARRAYS,
            batch_size=4,
            map=lambda x, seed: {"x": x["x"] + tf.random.stateless_uniform([], seed)},
        ),
        lambda: Source(ARRAYS, batch_size=4, map=in_python(lambda: 1.0)),
        lambda: Source(ARRAYS, batch_size=24, epochs=1, map=in_python(lambda: np.nan)),
        lambda: Source(Items(lambda i: np.random.default_rng(i).random()), batch_size=4),
        lambda: Source(
            ARRAYS,
            batch_size=4,
            batch_map=lambda x: {"x": keras.layers.Rescaling(0.5)(x["x"])},
        ),
    ],
)
def test_what_depends_on_the_position_alone_is_no_finding(make):
    assert make().randomness() == []


def trainer(**options):
    return tfloss.Trainer(
        Line(), keras.optimizers.SGD(0.1), jit=False, default_hooks=False, seed=0, **options
    )


def test_it_is_reported_before_the_first_step(tmp_path, replicas):
    source = Source(ARRAYS, batch_size=4, map=plus(lambda: tf.random.uniform([])))
    with pytest.warns(
        UserWarning, match=r"would not match.*\n.*RandomUniform \(.*test_source_rand"
    ):
        trainer(workdir=tmp_path).train(source, 1)


def test_it_is_refused_if_the_run_must_be_deterministic(monkeypatch):
    monkeypatch.setattr("tfloss.trainer.trainer.enable_op_determinism", lambda seed: None)
    source = Source(Items(lambda i: np.random.rand()), batch_size=4)
    one = trainer(deterministic=True)
    with pytest.raises(DataError, match="__getitem__ draws from np.random"):
        one.train(source, 1)
    assert one.step == 0
