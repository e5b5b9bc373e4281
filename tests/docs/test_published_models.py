"""The page of published models is that of the results, and the script finds differences."""

import importlib
import json
import math

import keras
import pytest

from tests.test_docs import ROOT

SMALL = {"ConvNeXtTiny": 32, "MobileNet": 32, "ResNet50": 32}


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("published_models")


def test_the_tables_are_those_of_the_results(script):
    results = json.loads(script.RESULTS.read_text())
    assert script.table(results) in script.PAGE.read_text()


def _cut(name, layer):
    """The first layers of a model of keras.applications, with a new head."""

    def recipe():
        recipes = importlib.import_module("_published_recipes")
        make = getattr(keras.applications, name)
        whole = make(weights=None, include_top=False, input_shape=(32, 32, 3))
        x = keras.layers.GlobalAveragePooling2D()(whole.get_layer(layer).output)
        head = keras.layers.Dense(recipes.CLASSES, activation="softmax")
        model = keras.Model(whole.input, head(x))
        batch = (recipes.images(32), recipes.labels())
        return recipes.Recipe(model, batch, recipes.CLASSIFIER)

    return recipe


@pytest.mark.parametrize(
    ("name", "layer"), [("VGG16", "block2_pool"), ("MobileNet", "conv_pw_1_relu")]
)
def test_the_beginning_of_a_model_trains_evaluates_and_exports_as_by_keras(
    name, layer, script, monkeypatch
):
    recipes = importlib.import_module("_published_recipes")
    monkeypatch.setitem(recipes.RECIPES, name, _cut(name, layer))
    found = script.compare(name)
    assert script.verdict(found) == "pass"
    assert found["equal"] == found["variables"] and found["finite"]
    assert found["unchanged"] == 0 and set(found["metrics"]) == {"accuracy", "loss"}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_whole_models_pass(name, script):
    assert script.verdict(script.run(name)) == "pass"


def test_a_difference_is_named(script):
    assert script.difference([1.0, 2.0], [1.0, 2.5]) == 0.25
    assert script.difference([math.nan, 1.0], [math.nan, 1.0]) == 0.0
    assert script.difference([math.nan, 1.0], [0.0, 1.0]) == math.inf
    found = {"other_names": [], "difference": 0.0, "evaluation": 0.0, "export": 0.0}
    assert script.verdict(found) == "pass"
    assert script.verdict(found | {"export": math.nan}) == "beyond the bound: export"
    assert script.verdict(found | {"difference": 1e-5}) == "beyond the bound: difference"
    assert script.verdict(found | {"other_names": ["mae"]}) == "other names of metrics: mae"
    failed = {"stage": "fit", "error": "ValueError: no\n loss"}
    assert script.verdict(failed) == "fails in fit: ValueError: no loss"
