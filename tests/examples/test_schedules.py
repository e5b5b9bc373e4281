"""The learning rate of each example reaches its end value at the last step of its config."""

import importlib.util
import itertools
import sys
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest
import tensorflow as tf

from tests.examples.harness import ROOT, load

CONFIGS = {path.stem: path for path in (ROOT / "configs").glob("*.py")}
SCRIPTS = {"fashion_mobilenet": "fashion", "tree_crowns": "detector"}  # the others are namesakes
FOUR = {"detector", "penguins"}  # their `batches` return a fourth value
CONSTANT = {"gan"}


class _Made(Exception):
    """Ends a script where it makes its trainer; the argument is the optimizer."""


def _raise(error: Exception) -> Any:
    raise error


def _config(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"config_{name}", CONFIGS[name])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


@pytest.fixture
def rate_of(monkeypatch):
    """`rate_of(name, steps)` runs an example's script without data, and returns its schedule.

    `steps` is `--config.steps`, by default the config's own. The result is the pair
    `(the function of the step, the number of steps)`.
    """

    def run(name: str, steps: int | None = None):
        folder = SCRIPTS.get(name, name)
        config = _config(name)
        config.steps = steps or config.steps
        data = ModuleType("input")
        sets = [MagicMock(), MagicMock(), MagicMock()]
        data.batches = lambda *_: [*sets, ["a name"]][: 4 if folder in FOUR else 3]
        monkeypatch.setitem(sys.modules, "input", data)
        for other in ("metrics", "score", "probe"):
            monkeypatch.setitem(sys.modules, other, MagicMock())
        monkeypatch.setitem(sys.modules, "model", load(f"{folder}/model.py"))

        fake = MagicMock(config=config, seed=0, strategy=tf.distribute.get_strategy())
        fake.trainer = lambda model, optimizer, **_: _raise(_Made(optimizer))
        with pytest.raises(_Made) as made:
            load(f"{folder}/train.py").main(fake)
        (optimizer,) = made.value.args

        def rate(step: int) -> float:
            optimizer.iterations.assign(step)
            return float(optimizer.learning_rate)

        return rate, config.steps

    return run


@pytest.mark.parametrize(
    "name",
    [  # those of the same script build a large model; they are slow
        pytest.param(name, marks=pytest.mark.slow) if name in SCRIPTS else name
        for name in sorted(set(CONFIGS) - CONSTANT)
    ],
)
def test_the_rate_is_at_its_end_value_after_the_last_step_and_not_before(name, rate_of):
    rate, steps = rate_of(name)
    assert rate(steps) == pytest.approx(0.0, abs=1e-10)
    assert rate(steps - 1) > 1e-10
    later = [rate(step) for step in range(steps // 2, steps + 1, steps // 20)]
    assert all(a > b for a, b in itertools.pairwise(later))


@pytest.mark.parametrize("steps", [1, 7, 100])
def test_a_short_run_warms_up_for_at_most_a_tenth_of_it(steps, rate_of):
    rate, _ = rate_of("digits", steps)
    highest = max(range(steps), key=rate)
    assert highest == min(50, steps // 10)
    assert rate(highest) == pytest.approx(2e-3)
    assert rate(steps) == pytest.approx(0.0, abs=1e-10)
