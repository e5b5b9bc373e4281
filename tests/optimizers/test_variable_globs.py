"""Globs of variable paths."""

import keras
import pytest

from tfloss.optimizers.variable_globs import matching


@pytest.fixture
def model():
    inputs = keras.Input([2])
    trunk = keras.Sequential([keras.layers.Dense(2, name="one")], name="backbone")
    return keras.Model(inputs, keras.layers.Dense(1, name="head")(trunk(inputs)), name="net")


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("*/bias", ["backbone/one/bias", "head/bias"]),
        ("backbone/*", ["backbone/one/kernel", "backbone/one/bias"]),
        ("net/backbone/*", None),
        ("head/kernel", ["head/kernel"]),
        ("*", ["backbone/one/kernel", "backbone/one/bias", "head/kernel", "head/bias"]),
    ],
)
def test_a_glob_matches_paths(model, glob, expected):
    if expected is None:  # Keras gives the variables of a functional model no prefix
        with pytest.raises(ValueError):
            matching(glob, model.weights, model, "x", "variable")
        return
    found = matching(glob, model.weights, model, "x", "variable")
    assert [v.path for v in found] == expected


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="net")
        self.head = keras.layers.Dense(1, name="head")

    def build(self, shape):
        self.head.build([None, 2])


@pytest.mark.parametrize("glob", ["head/*", "net/head/*", "*/head/*"])
def test_the_name_of_the_model_may_be_left_out(glob):
    model = Subclassed()
    model.build([None, 2])
    found = matching(glob, model.weights, model, "x", "variable")
    assert [v.name for v in found] == ["kernel", "bias"]


@pytest.mark.parametrize("glob", ["backbone/*", "net/backbone/*", "back*/one/*"])
def test_the_name_of_a_functional_part_may_stand_in_front(glob):
    inputs = keras.Input([2])
    inner = keras.Sequential([keras.layers.Dense(2, name="two")], name="inner")
    model = Subclassed()
    model.backbone = keras.Model(inputs, inner(keras.layers.Dense(2, name="one")(inputs)))
    model.backbone.name = "backbone"
    model.build([None, 2])
    paths = [v.path for v in matching(glob, model.weights, model, "x", "variable")]
    assert paths == ["one/kernel", "one/bias"] + ["inner/two/kernel", "inner/two/bias"] * (
        glob != "back*/one/*"
    )


@pytest.mark.parametrize(
    ("glob", "near"),
    [("bakbone/*", "backbone/one/kernel"), ("*/biases", "backbone/one/bias")],
)
def test_a_glob_that_matches_nothing_is_answered_with_the_nearest_path(model, glob, near):
    expected = f"rate_multipliers matches no variable of the model. The nearest path is '{near}'"
    with pytest.raises(ValueError, match=expected):
        matching(glob, model.weights, model, "rate_multipliers", "variable of the model")
