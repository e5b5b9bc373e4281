"""A model that was made again in the same process resumes: its layers are matched in order."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tfloss.checkpoint.renumbering import Renumbering
from tfloss.errors import CheckpointError
from tfloss.hooks import Every, SaveCheckpoint


def net(widths=(4, 4, 1), named=False):
    dense = [
        keras.layers.Dense(width, name=f"head_{i}" if named else None)
        for i, width in enumerate(widths)
    ]
    return keras.Sequential(
        [keras.Input([3]), dense[0], keras.layers.Dropout(0.5), *dense[1:]],
        name="net" if named else None,
    )


def make(workdir, *, optimizer=True, **options):
    keras.utils.set_random_seed(1)
    model = tfloss.adapters.supervised(net(**options), "mse")
    adam = keras.optimizers.Adam(0.01) if optimizer else None
    return tfloss.Trainer(
        model, adam, workdir=workdir, jit=False, seed=1, ema=0.9 if optimizer else None,
        hooks=[SaveCheckpoint(Every(steps=100))] if workdir else [], default_hooks=False,
    )  # fmt: skip


X, Y = np.random.default_rng(0).normal(size=[2, 16, 3])
DATA = (X, Y[:, :1])


def state(trainer):
    values = trainer.state.variables().values()
    return [np.asarray(one.read_value() if hasattr(one, "read_value") else one) for one in values]


def test_a_cell_that_is_run_again_resumes_to_the_bit(tmp_path, messages):
    keras.backend.clear_session()
    net()  # the first cell's numbers don't begin at 0
    whole = make(None)
    whole.train(DATA, 6, batch_size=4)
    first = make(tmp_path)
    first.train(DATA, 3, batch_size=4)
    again = make(tmp_path)
    again.train(DATA, 6, batch_size=4)
    for a, b in zip(state(whole), state(again), strict=True):
        np.testing.assert_array_equal(a, b)
    text = "\n".join(messages)
    assert "Keras has counted on" in text and "dense_6 is dense_9" in text
    # To evaluate, without an optimizer; the averages of the weights are found too.
    restored = make(tmp_path, optimizer=False)
    restored.restore(DATA, step=6)
    before = again.evaluate(DATA, losses=True, ema=True, batch_size=4)
    assert restored.evaluate(DATA, losses=True, ema=True, batch_size=4) == before


@pytest.mark.parametrize(
    ("then", "now"), [({}, {"widths": (4, 1)}), ({}, {"widths": (5, 4, 1)}), ({}, {"named": True})]
)
def test_another_model_is_refused(then, now, tmp_path):
    make(tmp_path, **then).train(DATA, 1, batch_size=4)
    with pytest.raises(CheckpointError, match="doesn't match"):
        make(tmp_path, **now).train(DATA, 2, batch_size=4)


def test_numbers_that_a_person_gave_are_names():
    keras.backend.clear_session()
    model = net(named=True)
    saved = ["model/net/head_1/kernel", "model/net/head_2/kernel", "model/net/head_3/kernel"]
    here = [f"model/{one.path}" for one in model.variables]
    assert Renumbering(model, here, saved).saved_as == {}


def test_ten_comes_after_nine():
    keras.backend.clear_session()
    for _ in range(9):
        keras.layers.Dense(1)
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1), keras.layers.Dense(1)])
    here = [f"model/{one.path}" for one in model.variables]
    saved = ["model/sequential_3/dense/kernel", "model/sequential_3/dense_1/kernel"]
    found = Renumbering(model, here, saved)
    assert found.saved_as == {
        "dense_9": "dense",
        "dense_10": "dense_1",
        "sequential": saved[0][6:18],
    }
    named = {"optimizer/sequential/dense_10/kernel/momentum": tf.zeros([])}
    assert list(found.in_checkpoint(named)) == ["optimizer/sequential_3/dense_1/kernel/momentum"]
    assert found.here(found.in_checkpoint(named)) == list(named)
