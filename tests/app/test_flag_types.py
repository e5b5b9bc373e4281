"""The types of flags that absl lacks: a range of steps, and the values of `jit`."""

import pytest
from absl import flags

from tfloss.app.flag_types import JitFlag, StepRangeParser

JIT = [
    ("--jit", True),
    ("--nojit", False),
    ("--jit=true", True),
    ("--jit=false", False),
    ("--jit=loop", "loop"),
    ("--jit=auto", "auto"),
]


@pytest.fixture
def values():
    """A set of flags that holds `--jit` alone."""
    found = flags.FlagValues()
    flags.DEFINE_flag(JitFlag("jit", "How to compile."), found)
    return found


@pytest.mark.parametrize(("argument", "value"), JIT)
def test_jit_is_a_boolean_flag_that_also_takes_a_mode(values, argument, value):
    values(["train.py", argument])

    assert type(values.jit) is type(value) and values.jit == value


@pytest.mark.parametrize("argument", ["--jit", "--nojit", "--jit=loop", "--jit=auto"])
def test_jit_can_be_written_back_as_an_argument(values, argument):
    values(["train.py", argument])

    assert values["jit"].serialize() == argument


def test_jit_is_unset_by_default(values):
    values(["train.py"])

    assert values.jit is None


def test_an_unknown_mode_is_refused(values):
    with pytest.raises(flags.IllegalFlagValueError, match="expected loop, auto, true or false"):
        values(["train.py", "--jit=lop"])


@pytest.mark.parametrize(
    ("argument", "steps"), [("100:110", (100, 110)), ("0:1", (0, 1)), ("9:10", (9, 10))]
)
def test_a_range_of_steps(argument, steps):
    assert StepRangeParser().parse(argument) == steps


@pytest.mark.parametrize(
    "argument", ["100", "110:100", "10:10", "10:9", "a:b", "1:2:3", "1:2 ", "-1:2", ":5", "5:", ""]
)
def test_another_form_than_a_rising_range_is_refused(argument):
    with pytest.raises(ValueError, match="expected two steps START:STOP with START < STOP"):
        StepRangeParser().parse(argument)
