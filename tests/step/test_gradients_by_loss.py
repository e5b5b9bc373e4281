"""Gradients of single losses: which losses, which variables, what they are."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfloss.errors import LossError
from tfloss.step.gradients_by_loss import (
    LossGradientRequest,
    gradients_by_loss,
    scalar_products,
)


def _variables():
    shared = keras.Variable([1.0, 2.0], name="shared")
    return {
        "one": [shared, keras.Variable(3.0, name="head")],
        "two": [keras.Variable(1.0, name="x")],
    }


def _found(requests, due=("one", "two")):
    """Losses a = sum(shared) * head, b = shared[0] ** 2, c = x."""
    variables, model = _variables(), keras.Model(name="model")
    asked = []

    def gradient(name, ones):
        asked.append(name)
        (shared, head), (x,) = variables["one"], variables["two"]
        with tf.GradientTape() as tape:
            losses = {
                "a": tf.reduce_sum(shared.value) * head.value,
                "b": shared.value[0] ** 2,
                "two/c": x.value * 2.0,
            }
        return tape.gradient(losses[name], [v.value for v in ones])

    mine = {"one": ["a", "b"], "two": ["two/c"]}
    found = gradients_by_loss(gradient, mine, variables, due, requests, model)
    return *found, asked


def _request(globs=("*",), losses=lambda names: names, required=False):
    return LossGradientRequest("Somebody", losses, tuple(globs), required)


def test_only_what_two_losses_reach_is_returned():
    gradients, by_loss, asked = _found([_request()])
    assert by_loss.losses == ("a", "b", "two/c")
    assert by_loss.variables == (("one", 0),)
    assert [one[0].numpy().tolist() for one in gradients] == [[3.0, 3.0], [2.0, 0.0], [0.0, 0.0]]
    assert asked == ["a", "b", "two/c"]


def test_several_requests_share_the_passes():
    pair = _request(losses=lambda names: ["b", "a"])
    gradients, by_loss, asked = _found([_request(), pair])
    assert asked == ["a", "b", "two/c"]
    each = [scalar_products([one[0] for one in gradients])]
    whole, part = (by_loss.products(each, i) for i in range(2))
    assert whole.products.numpy().tolist() == [[18.0, 6.0, 0.0], [6.0, 4.0, 0.0], [0.0] * 3]
    assert part.losses == ("b", "a")
    assert part.products.numpy().tolist() == [[4.0, 6.0], [6.0, 18.0]]


def test_nothing_is_asked_for_without_a_request():
    gradients, by_loss, asked = _found([])
    assert (gradients, by_loss.variables, asked) == ([], (), [])


def test_losses_that_share_nothing():
    gradients, by_loss, _ = _found([_request(["head"])])
    assert gradients == [[], [], []]
    assert by_loss.products([], 0) is None
    with pytest.raises(LossError, match=r"Somebody balances the losses a, b, two/c, but"):
        _found([_request(["head"], required=True)])
    _found([_request(["x"], required=True)], due=("one",))  # perhaps at another step
    with pytest.raises(ValueError, match=r"Somebody: 'hed' matches no trained variable.*'head'"):
        _found([_request(["hed"], required=True)])
    assert _found([_request(["hed"])])[1].variables == ()


def test_products_of_half_precision_and_of_complex_numbers():
    one = tf.constant([300.0, 0.0], tf.float16)
    assert scalar_products([one, one]).numpy().tolist() == [[90000.0] * 2] * 2
    turned, other = tf.constant([1j, 2 + 0j]), tf.constant([1 + 0j, 1j])
    np.testing.assert_allclose(scalar_products([turned, other]), [[5.0, 0.0], [0.0, 2.0]])
