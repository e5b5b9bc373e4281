"""Which trainable flags a freeze sets, and gives back."""

import keras
import pytest

from tfloss.step.freezing import Freezing

layers = keras.layers


def make(*, frozen=()):
    def block(name):
        parts = [layers.Dense(2, name="dense"), layers.Dropout(0.1), layers.BatchNormalization()]
        return keras.Sequential(parts, name=name)

    inputs = keras.Input([2])
    trunk = keras.Sequential([block("one"), block("two")], name="trunk")
    model = keras.Model(inputs, layers.Dense(1, name="head")(trunk(inputs)), name="net")
    for name in frozen:
        trunk.get_layer(name).trainable = False
    return model, trunk


def flags(model):
    found = {layer.name: layer.trainable for layer in model._flatten_layers()}
    return found, [v.trainable for v in model.weights]


def trained(model):
    return {"/".join(v.path.split("/")[:2]) for v in model.trainable_variables}


def test_layers_all_of_whose_weights_match_are_frozen_and_given_back():
    model, trunk = make()
    before, freezing = flags(model), Freezing(model)
    freezing.freeze("trunk/*", "x")
    assert not trunk.trainable and not any(one.trainable for one in trunk.layers)
    assert trained(model) == {"head/kernel", "head/bias"}
    assert [v.path for v in freezing.variables()] == [v.path for v in trunk.weights]
    freezing.thaw("trunk/*")
    assert flags(model) == before


def test_single_variables_are_frozen_and_their_layers_are_not():
    model, trunk = make()
    before, freezing = flags(model), Freezing(model)
    freezing.freeze("*/kernel", "x")
    assert all(layer.trainable for layer in model._flatten_layers())
    assert not any("kernel" in v.path for v in model.trainable_variables)
    assert len(model.trainable_variables) == 7
    freezing.thaw("*/kernel")
    assert flags(model) == before


@pytest.mark.parametrize("first", ["trunk/*", "trunk/one/*"])
def test_what_two_globs_match_is_frozen_until_the_last_thaw(first):
    model, trunk = make()
    before, freezing = flags(model), Freezing(model)
    second = {"trunk/*": "trunk/one/*", "trunk/one/*": "trunk/*"}[first]
    freezing.freeze(first, "x")
    freezing.freeze(second, "x")
    assert freezing.globs == (first, second)
    freezing.thaw(first)
    assert trunk.get_layer("two").trainable == (first == "trunk/*")
    assert not trunk.get_layer("one").trainable
    freezing.thaw(second)
    assert flags(model) == before


def test_what_the_script_has_frozen_stays_frozen():
    model, trunk = make(frozen=["one"])
    before, freezing = flags(model), Freezing(model)
    freezing.freeze("trunk/*", "x")
    freezing.thaw("trunk/*")
    assert flags(model) == before
    assert trained(model) == {"trunk/two", "head/kernel", "head/bias"}
    with pytest.raises(ValueError, match="x would thaw nothing: .*remove trainable=False"):
        freezing.freeze("trunk/one/*", "x")


def test_nothing_left_to_train_is_refused():
    model, _ = make()
    before, freezing = flags(model), Freezing(model)
    freezing.freeze("trunk/*", "x")
    with pytest.raises(ValueError, match="x would freeze every trainable variable"):
        freezing.freeze("head/*", "x")
    freezing.thaw("trunk/*")
    assert flags(model) == before
