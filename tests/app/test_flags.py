"""The flags of a training script: their values, and the messages about wrong ones."""

import dataclasses
from pathlib import Path

import pytest
from absl import flags

from tfloss.app.flags import FlagError, parse_flags

# ml_collections loads a config in a way that Python 3.11 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def test_the_defaults(parse, tmp_path):
    options = parse()

    assert options.config.optimizer.learning_rate == 1e-3
    assert dataclasses.asdict(options) | {"config": None} == {
        "config": None,
        "workdir": tmp_path / "run",
        "mode": "train_and_eval",
        "strategy": "auto",
        "replicas": None,
        "seed": 0,
        "jit": None,
        "profile": None,
        "overfit_batches": None,
        "max_steps": None,
        "deterministic": False,
        "max_minutes": None,
        "restore": None,
        "follow": False,
        "dry_run": False,
    }


def test_every_flag_has_its_type(parse):
    options = parse(
        "--mode=eval",
        "--strategy=mirrored",
        "--replicas=2",
        "--seed=7",
        "--jit",
        "--profile=100:110",
        "--overfit_batches=1",
        "--max_steps=50",
        "--deterministic",
        "--max_minutes=0.5",
        "--config.optimizer.learning_rate=3e-4",
        "--config.steps=7",
        "--config.smooth",
    )

    assert (options.mode, options.strategy, options.replicas) == ("eval", "mirrored", 2)
    assert (options.seed, options.jit, options.profile) == (7, True, (100, 110))
    assert (options.overfit_batches, options.max_steps) == (1, 50)
    assert (options.deterministic, options.max_minutes) == (True, 0.5)
    assert options.config.to_dict() == {
        "steps": 7,
        "smooth": True,
        "optimizer": {"name": "adam", "learning_rate": 3e-4},
    }


def test_home_is_expanded(recipe):
    argv = ["train.py", f"--config={recipe}", "--workdir=~/runs"]

    assert parse_flags(argv, values=flags.FlagValues()).workdir == Path.home() / "runs"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--workdri=x", "Unknown flag --workdri. Did you mean --workdir?"),
        (
            "--config.optimizer.learning_rat=1",
            "Unknown config key --config.optimizer.learning_rat. "
            "Did you mean --config.optimizer.learning_rate?",
        ),
        ("--config.steps=many", "--config.steps=many: expected a whole number (int)"),
        ("--seed=x", "--seed=x: invalid literal for int()"),
        ("--replicas=0", "--replicas=0: 0 is not a positive integer"),
        ("--max_steps=0", "--max_steps=0: 0 is not a positive integer"),
        ("--max_minutes=0", "--max_minutes=0: 0.0 is not number >= 0.01"),
        ("--strategy=mirorred", "should be one of <auto|one|mirrored|multi_worker|tpu>"),
        ("--mode=evaluate", "should be one of <train|train_and_eval|eval|export>"),
        ("--jit=lop", "--jit=lop: expected loop, auto, true or false"),
        ("--profile=100", "--profile=100: expected two steps START:STOP"),
        ("workdir=x", "Unexpected argument 'workdir=x'. Write every option as --name=value."),
    ],
)
def test_a_wrong_argument_is_named(parse, argument, message):
    with pytest.raises(FlagError) as error:
        parse(argument)

    assert message in str(error.value)


def test_a_missing_config_file_and_an_error_in_one_are_shown(recipe, parse):
    recipe.write_text("def get_config():\n    return [].lenght\n")
    with pytest.raises(FlagError, match=r"(?s)line 2, in get_config\n.*'lenght'"):
        parse()

    recipe.unlink()
    with pytest.raises(FlagError, match="There is no config file"):
        parse()


def test_config_and_workdir_are_required(recipe):
    for argv, message in (
        (["--workdir=x"], "Flag --config is required, for instance --config=configs/digits.py."),
        ([f"--config={recipe}"], "Flag --workdir is required, for instance --workdir=runs/digits."),
        (
            ["--workdir=x", "--config.steps=1"],
            "--config.steps=1 overrides a config, and there is none.",
        ),
    ):
        with pytest.raises(FlagError) as error:
            parse_flags(["train.py", *argv], values=flags.FlagValues())
        assert message in str(error.value)


def test_a_script_may_have_a_default_config_and_flags_of_its_own(recipe):
    values = flags.FlagValues()
    flags.DEFINE_string("teacher", None, "A flag of the script.", flag_values=values)
    argv = ["train.py", "--workdir=x", "--teacher=big", "--config.steps=3"]

    options = parse_flags(argv, config=str(recipe), values=values)

    assert options.config.steps == 3
    assert values.teacher == "big"


def test_each_run_defines_the_flags_again(recipe):
    values = flags.FlagValues()
    first = ["train.py", f"--config={recipe}", "--workdir=x", "--seed=3", "--config.steps=3"]
    second = ["train.py", f"--config={recipe}", "--workdir=x"]

    assert parse_flags(first, values=values).seed == 3
    options = parse_flags(second, values=values)

    assert (options.seed, options.config.steps) == (0, 100)


def test_a_flag_that_the_script_defines_too_is_an_error(recipe):
    values = flags.FlagValues()
    flags.DEFINE_integer("seed", 1, "The script's own.", flag_values=values)

    with pytest.raises(flags.DuplicateFlagError, match="seed"):
        parse_flags(["train.py", f"--config={recipe}", "--workdir=x"], values=values)


def test_a_dry_run_is_one_of_training(parse):
    assert parse("--dry_run").dry_run
    with pytest.raises(FlagError, match="--dry_run looks at training, and --mode=eval doesn't"):
        parse("--mode=eval", "--dry_run")


@pytest.mark.parametrize(("flag", "value"), [("--follow", True), ("--follow=newest", "newest")])
def test_follow_is_a_mode_of_evaluation(parse, flag, value):
    assert parse("--mode=eval", flag).follow == value
    with pytest.raises(
        FlagError, match="--follow evaluates a run: it needs --mode=eval, not train"
    ):
        parse("--mode=train", flag)
    with pytest.raises(FlagError, match="expected newest, true or false"):
        parse("--mode=eval", "--follow=oldest")
    with pytest.raises(FlagError, match="--restore=best chooses one"):
        parse("--mode=eval", "--follow", "--restore=best")
