"""Values of a config that the command line overrides."""

import pytest
from absl import flags

from tfloss.app.config_overrides import Override, take_overrides
from tfloss.app.flags import FlagError, parse_flags

# ml_collections loads a config in a way that Python 3.11 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

RECIPE = """
import dataclasses
import enum
import pathlib

from ml_collections import ConfigDict, FieldReference, config_dict


class Speed(enum.Enum):
    SLOW = 1
    FAST = 2


@dataclasses.dataclass
class Noise:
    rate: float = 0.5


def get_config():
    return ConfigDict({
        "steps": 100, "lr": 1e-3, "smooth": False, "act": "relu", "nothing": None,
        "count": config_dict.placeholder(int), "ref": FieldReference(3),
        "sizes": [1, 2], "shape": (3, 4), "rates": [0.1], "names": ["a"], "on": [True],
        "empty": [], "nested": [[1], [2, 3]], "layers": [{"units": 3}, {"units": 4}],
        "loss_weights": {"heads/age": 1.0, "heads/sex": 2.0, "class-1": 3.0, "lambda": 4.0},
        "at": {1000: 0.1}, "table": config_dict.placeholder(dict), "pairs": [(1, 2), (3, 4)],
        "speed": Speed.SLOW, "noise": Noise(), "path": pathlib.Path("x"),
    })
"""


@pytest.fixture(scope="module")
def overridden(tmp_path_factory):
    """Parses overrides with a config of all types."""
    recipe = tmp_path_factory.mktemp("configs") / "recipe.py"
    recipe.write_text(RECIPE)

    def parse(*arguments: str):
        argv = ["train.py", f"--config={recipe}", "--workdir=x", *arguments]
        return parse_flags(argv, values=flags.FlagValues()).config

    return parse


@pytest.mark.parametrize(
    ("key", "cases"),
    [
        ("steps", {"7": 7, "-7": -7, "0x10": 16, "none": None}),
        ("lr", {"3e-4": 3e-4, "1": 1.0, "None": None}),
        ("smooth", {"true": True, "1": True, "false": False}),
        ("act", {"gelu": "gelu", "none": "none", "1,2": "1,2", "": ""}),
        ("nothing", {"none": None, "3": 3, "0.5": 0.5, "true": True, "x": "x", "[1, 2]": [1, 2]}),
        ("count", {"5": 5, "none": None}),
        ("ref", {"9": 9}),
        ("sizes", {"1,2,3": [1, 2, 3], "[4]": [4], "(5, 6)": [5, 6], "7": [7], "[]": [], "": []}),
        ("shape", {"7,8,9": (7, 8, 9), "[5]": (5,), "none": None}),
        ("rates", {"1,0.5": [1.0, 0.5]}),
        ("names", {"a,b": ["a", "b"], "a,": ["a"], "'a,b','c'": ["a,b", "c"], "-1,x": ["-1", "x"],
                   "[x, y]": ["x", "y"], "['p', 'q']": ["p", "q"],
                   "1e3,2": ["1e3", "2"]}),
        ("on", {"true,False": [True, False]}),
        ("empty", {"1,a,0.5": [1, "a", 0.5]}),
        ("nested", {"[[1], [2]]": [[1], [2]], "(1, 2),[]": [[1, 2], []]}),
        ("pairs", {"(5, 6),(7, 8)": [(5, 6), (7, 8)], "[[5, 6]]": [(5, 6)], "none": None}),
        ("table", {"{'heads/age': -1}": {"heads/age": -1}, "none": None}),
        ("speed", {"fast": 2}),
    ],
)  # fmt: skip
def test_a_text_is_read_by_the_type_of_the_present_value(overridden, key, cases):
    for text, expected in cases.items():
        value = overridden(f"--config.{key}={text}")[key]
        value = getattr(value, "value", value)  # of an Enum
        assert (type(value), value) == (type(expected), expected), text


def test_names_with_slashes_dashes_and_keywords_are_reached(overridden):
    config = overridden(
        "--config.loss_weights.heads/age=0.5",
        "--config.loss_weights['heads/sex']=0.25",
        "--config.loss_weights.class-1=5",
        "--config.loss_weights.lambda=6",
        "--config.at.1000=0.7",
        "--config.layers[1].units=9",
        "--config.noise.rate=0.75",
    )

    assert config.loss_weights.to_dict() == {
        "heads/age": 0.5,
        "heads/sex": 0.25,
        "class-1": 5.0,
        "lambda": 6.0,
    }
    assert config["at"][1000] == 0.7
    assert config.layers[1]["units"] == 9
    assert config.noise.rate == 0.75


def test_the_suggested_override_can_be_used(overridden):
    with pytest.raises(FlagError) as error:
        overridden("--config.loss_weights.heads/agee=0.5")
    assert "Did you mean --config.loss_weights.heads/age?" in str(error.value)
    config = overridden("--config.loss_weights.heads/age=0.5")
    assert config.loss_weights["heads/age"] == 0.5


def test_a_mapping_is_replaced_as_a_whole(overridden):
    config = overridden("--config.loss_weights={'heads/new': 1.5}")
    assert config.loss_weights.to_dict() == {"heads/new": 1.5}
    assert overridden("--config.loss_weights=none").loss_weights is None


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.steps=1e3", "--config.steps=1e3: expected a whole number (int), such as 100."),
        ("--config.lr=x", "--config.lr=x: expected a number (float), such as 0.001."),
        ("--config.smooth=maybe", "--config.smooth=maybe: expected true or false (now False)."),
        ("--config.sizes=1.5", "--config.sizes=1.5: expected a list of int, such as 1,2."),
        ("--config.shape=a", "--config.shape=a: expected a tuple of int, such as 3,4."),
        ("--config.count=x", "--config.count=x: expected a whole number (int), such as 1."),
        ("--config.steps", "--config.steps: a value is missing, such as =100."),
        ("--noconfig.steps", "--noconfig.steps: expected a whole number (int), such as 100."),
        ("--config.speed=x", "--config.speed=x: value should be one of <slow|fast>."),
        ("--config.path=x", "--config.path=x: the value of the config is a PosixPath, which can't"),
        (
            "--config.loss_weights=3",
            "--config.loss_weights=3: expected a mapping (dict), such as \"{'name': 1}\", which "
            "replaces all of it. To change one value, give --config.KEY.NAME, where NAME is one "
            "of: class-1, heads/age, heads/sex, lambda.",
        ),
        (
            "--config.table=3",
            "--config.table=3: expected a mapping (dict), such as \"{'name': 1}\", which replaces "
            "all of it.",
        ),
        ("--config.pairs=5,6", "--config.pairs=5,6: expected a list of tuple, such as (1, 2),(3,"),
        ("--config.=3", "Unknown config key --config.."),
        ("--config.layers[5].units=1", "Unknown config key --config.layers[5].units."),
    ],
)
def test_the_error_names_the_flag_and_the_type(overridden, argument, message):
    with pytest.raises(FlagError) as error:
        overridden(argument)
    assert str(error.value).startswith(message)


def test_overrides_are_taken_out_of_a_command_line():
    argv = ["t.py", "--config.a", "--seed=1", "--noconfig.b", "-config.c", "-5", "--config.d", "x"]
    assert take_overrides([*argv, "--config=f", "--", "--config.e=1"]) == (
        ["t.py", "--seed=1", "--config=f", "--", "--config.e=1"],
        [
            Override("--config.a", "a", None),
            Override("--noconfig.b", "b", "false"),
            Override("-config.c=-5", "c", "-5"),
            Override("--config.d=x", "d", "x"),
        ],
    )


def test_the_last_of_two_overrides_applies_and_may_stand_before_the_config(overridden):
    assert overridden("--config.steps=1", "--config.steps=2").steps == 2
