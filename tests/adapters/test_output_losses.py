"""Losses of outputs have names, weights, and the structures that compile takes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfloss.adapters.output_losses import OutputLosses
from tfloss.errors import LossError

_ONE, _TWO = tf.constant([[1.0], [3.0]]), tf.constant([[2.0], [2.0]])
_ZERO = tf.zeros([2, 1])


def _named(loss, y, p, weights=None, names=None, sample_weight=None, **options):
    found = OutputLosses(loss, weights, names).named(y, p, sample_weight, **options)
    return {name: float(value) for name, value in found.items()}


@pytest.mark.parametrize(
    ("loss", "y", "p", "names", "expected"),
    [
        ("mse", _ZERO, _ONE, ["out"], {"mean_squared_error": 5.0}),
        ("mae", [_ZERO, _ZERO], [_ONE, _TWO], ["a", "b"], {"a": 2.0, "b": 2.0}),
        (["mse", "mae"], (_ZERO, _ZERO), [_ONE, _TWO], None, {"0": 5.0, "1": 2.0}),
        ({"b": "mse"}, {"b": _ZERO}, {"a": _ONE, "b": _TWO}, None, {"b": 4.0}),
        ({"a": "mse", "b": None}, [_ZERO, _ZERO], [_ONE, _TWO], ["a", "b"], {"a": 5.0}),
        (
            {"x": ["mse", "mae"], "z": "mae"},
            {"x": [_ZERO, _ZERO], "z": _ZERO},
            {"x": [_ONE, _TWO], "z": _ONE},
            None,
            {"x/mean_squared_error": 5.0, "x/mean_absolute_error": 2.0, "z": 2.0},
        ),
        (lambda y, p: p - y, tf.constant([1.0, 2.0]), _ONE, None, {"lambda": 0.5}),
    ],
)
def test_losses_are_named_after_outputs(loss, y, p, names, expected):
    assert _named(loss, y, p, names=names) == expected


def test_weights_are_part_of_a_loss_and_can_be_left_out():
    arguments = [{"a": "mse", "b": "mae"}, {"a": _ZERO, "b": _ZERO}, {"a": _ONE, "b": _TWO}]
    assert _named(*arguments, {"a": 3.0, "b": 0.5}) == {"a": 15.0, "b": 1.0}
    weighted = _named(*arguments, sample_weight={"a": tf.constant([1.0, 0.0]), "b": _TWO[:, 0]})
    assert weighted == {"a": 0.5, "b": 4.0}
    losses = OutputLosses(arguments[0], [3.0, 0.5], None)
    seen = []
    assert float(losses.total(*arguments[1:], seen=seen)) == 16.0
    assert seen == [{"a": 5.0, "b": 2.0}]


def test_crossentropy_is_chosen_by_the_labels():
    p = tf.constant([[0.5, 0.5], [0.25, 0.75]])
    expected = -np.log([0.5, 0.75]).mean()
    for y, name in [
        (tf.constant([0, 1]), "sparse_categorical_crossentropy"),
        (tf.constant([[1.0, 0.0], [0.0, 1.0]]), "categorical_crossentropy"),
    ]:
        assert _named("crossentropy", y, p) == {name: pytest.approx(expected)}


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"a": "mse", "c": "mse"}, r"\('c',\)(?s:.*)loss: {'a': 'mean_squared_error', 'c'"),
        (["mse"], "one loss is for several outputs(?s:.*)predictions: {'a': float32 "),
        ([["mse", "mae"], "mse", "mae"], "losses don't fit the outputs"),
    ],
)
def test_losses_that_do_not_fit_are_described(loss, message):
    with pytest.raises(LossError, match=message):
        _named(loss, {"a": _ZERO, "b": _ZERO}, {"a": _ONE, "b": _TWO})


def test_an_error_inside_of_a_loss_stays_as_it_is():
    def broken(y, p):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="^'mine'$"):
        _named(broken, _ZERO, _ONE)
    with pytest.raises(ValueError, match="nonsense"):
        OutputLosses("nonsense", None, None)
    no_number = {"a": keras.losses.MeanSquaredError(reduction="none")}
    with pytest.raises(LossError, match="has reduction=None"):
        OutputLosses(no_number, None, None)
