"""benchmarks/why compares like with like: split and whole are one algorithm, two ways."""

import runpy
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.examples import test_detector, test_penguins
from tests.examples.harness import train_a_little

WHY = Path(__file__).parents[1] / "benchmarks" / "why"
TASKS = ("species", "sex", "mass", "isotopes", "reconstruction")


@pytest.fixture(autouse=True)
def _modules(monkeypatch):
    monkeypatch.syspath_prepend(str(WHY))
    yield
    for name in ("_examples", "detector_split", "penguins_split"):
        sys.modules.pop(name, None)


def _fit(make, data, to_targets, losses, steps=3):
    """The weights after some steps of `keras.fit`."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    model = make()
    model.compile(keras.optimizers.SGD(0.05), loss=losses)
    options = tf.data.Options()
    options.autotune.enabled = False
    data = data.map(lambda batch: to_targets(model, batch)).with_options(options)
    model.fit(data.take(steps), verbose=0)
    return model.get_weights()


def _assert_same(whole, split):
    assert len(whole) == len(split)
    for one, other in zip(whole, split, strict=True):
        np.testing.assert_allclose(other, one, rtol=2e-5, atol=1e-6)


@pytest.mark.slow  # the split penguins below are quick
@pytest.mark.parametrize("masks", [True, False])
def test_the_split_detector_trains_as_the_whole(masks, replicas):
    split = runpy.run_path(str(WHY / "detector_split.py"))
    whole = train_a_little(test_detector._make(masks=masks), test_detector._data(3), replicas(1))
    fitted = _fit(
        lambda: split["SplitDetector"](2, **{**test_detector.SMALL, "masks": masks}),
        test_detector._data(3),
        lambda _, batch: split["targets"](batch, masks),
        split["losses"](masks),
    )
    _assert_same(whole[1], fitted)


@pytest.mark.parametrize("tasks", [TASKS, ("species", "mass")])
def test_the_split_penguins_train_as_the_whole(tasks, replicas):
    split = runpy.run_path(str(WHY / "penguins_split.py"))
    data = test_penguins._data(3)
    whole = train_a_little(test_penguins._make(tasks=tasks), data, replicas(1))
    fitted = _fit(
        lambda: split["SplitPenguins"](test_penguins.STATISTICS, width=16, tasks=tasks),
        data,
        split["targets"],
        split["losses"](tasks),
    )
    _assert_same(whole[1], fitted)
