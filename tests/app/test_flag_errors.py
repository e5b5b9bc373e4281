"""Messages about a wrong command line name the argument and the nearest valid one."""

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


def test_a_key_without_a_config_is_answered_with_the_flag_of_the_config():
    assert unknown_flag("config.steps", FLAGS) == (
        "Flag --config.steps overrides a config, and there is none. Add --config=FILE."
    )


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.step=1", "step. Did you mean --config.steps? {all}"),
        ("--noconfig.smoth", "smoth. Did you mean --config.smooth? {all}"),
        ("-config.zzzzzz=1", "zzzzzz. {all}"),
        ("--config.steps.x=1", "steps.x. Did you mean --config.steps? {all}"),
        (
            "--config.optimiser.learning_rate=1",
            "optimiser.learning_rate. Did you mean --config.optimizer.learning_rate? {all}",
        ),
        (
            "--config.optimizer.learning_rat=1",
            f"optimizer.learning_rat. Did you mean --config.optimizer.learning_rate? {GROUP}",
        ),
        (
            "--config.optimizer.nam=1",
            f"optimizer.nam. Did you mean --config.optimizer.name? {GROUP}",
        ),
        ("--config.optimizer.lr=1", f"optimizer.lr. {GROUP}"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_one_and_the_keys_of_its_group(
    recipe, argument, message
):
    every = f"{recipe} has: optimizer, optimizer.learning_rate, optimizer.name, smooth, steps."

    found = unknown_key(["train.py", argument], str(recipe))

    assert found == "Unknown config key --config." + message.format(all=every)


def test_only_the_first_unknown_key_is_named(recipe):
    argv = ["train.py", "--seed=1", "--config.steps=3", "--config.a=1", "--config.b=1"]

    assert unknown_key(argv, str(recipe)).startswith("Unknown config key --config.a.")
    assert unknown_key(argv[:3], str(recipe)) is None
    assert unknown_key(argv, None) is None


def test_an_error_inside_a_config_file_is_not_hidden(recipe):
    recipe.write_text("def get_config():\n    return [].lenght\n")

    with pytest.raises(AttributeError, match="lenght"):
        unknown_key(["train.py", "--config.steps=3"], str(recipe))


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
