"""Messages about a wrong command line name the argument and the nearest valid one."""

import sys

import pytest

from tfloss.app.flag_errors import FlagError, check_file_exists, unknown_flag, unknown_key

# ml_collections loads a config in a way that Python 3.11 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

FLAGS = ("workdir", "overfit_batches", "seed")
GROUP = "config.optimizer has: learning_rate, name."


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("workdri", "Did you mean --workdir?"),
        ("overfit_batch", "Did you mean --overfit_batches?"),
        ("zzzzzz", "--help lists the flags."),
    ],
)
def test_an_unknown_flag_is_answered_with_the_nearest_one(name, hint):
    assert unknown_flag(name, FLAGS) == f"Unknown flag --{name}. {hint}"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("step", "step. Did you mean --config.steps? {all}"),
        ("zzzzzz", "zzzzzz. {all}"),
        ("steps.x", "steps.x. Did you mean --config.steps? {all}"),
        (
            "optimiser.learning_rate",
            "optimiser.learning_rate. Did you mean --config.optimizer.learning_rate? {all}",
        ),
        (
            "optimizer.learning_rat",
            f"optimizer.learning_rat. Did you mean --config.optimizer.learning_rate? {GROUP}",
        ),
        ("optimizer.nam", f"optimizer.nam. Did you mean --config.optimizer.name? {GROUP}"),
        ("optimizer.lr", f"optimizer.lr. {GROUP}"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_one_and_the_keys_of_its_group(key, message):
    config = {
        "optimizer": {"learning_rate": 1e-3, "name": "adam"},
        "smooth": False,
        "steps": 100,
    }
    every = "a.py has: optimizer, optimizer.learning_rate, optimizer.name, smooth, steps."

    found = unknown_key(key, config, "a.py")

    assert found == "Unknown config key --config." + message.format(all=every)


def test_a_missing_config_file_is_named_with_the_nearest_one(recipe):
    check_file_exists(str(recipe))
    check_file_exists(f"{recipe}:large")

    wrong = recipe.with_name("recipes.py")
    with pytest.raises(FlagError) as error:
        check_file_exists(f"{wrong}:large")
    assert str(error.value) == f"There is no config file '{wrong}'. Did you mean '{recipe}'?"

    for far in (recipe.with_name("zzzzzz.py"), recipe.parent / "missing" / "recipe.py"):
        with pytest.raises(FlagError) as error:
            check_file_exists(str(far))
        assert str(error.value) == f"There is no config file '{far}'."


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("def get_config():\n    return {'a': 1}\n", "ConfigDict, and returned a dict."),
        ("def get_config():\n    pass\n", "returned None: is the return missing?"),
        ("x = 1\n", "has no function get_config()."),
        ("def get_config(:\n", "line 1"),
        ("def get_config():\n    return int('x')\n", "line 2, in get_config"),
        ("import no_such_module\n", "line 1, in <module>"),
    ],
)
def test_a_config_file_that_fails_is_shown_with_its_own_lines(
    recipe, parse, monkeypatch, written, message
):
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # of an earlier config
    recipe.write_text(written)

    with pytest.raises(FlagError) as error:
        parse("--config.steps=3")

    assert message in str(error.value)
    assert "ml_collections/config_flags" not in str(error.value)
    assert len(str(error.value).splitlines()) <= 6
