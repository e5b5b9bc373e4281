"""The flags of a training script: defined, parsed, and refused with the nearest valid name.

Nothing here imports TensorFlow, so that a typo fails at once. Host code.
"""

import dataclasses
import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from tfloss.distribute.strategy_names import STRATEGY_NAMES

MODES = ("train", "train_and_eval", "eval", "export")


class FlagError(Exception):
    """The command line is wrong; the message is for whoever typed it."""


@dataclasses.dataclass(frozen=True)
class Options:
    """The parsed flags, as plain values. `tfloss.app.Run` says what they mean."""

    config: Any
    workdir: Path
    mode: str
    strategy: str
    replicas: int | None
    seed: int
    jit: bool | str | None
    profile: tuple[int, int] | None
    overfit_batches: int | None
    max_steps: int | None
    deterministic: bool
    max_minutes: float | None


def define_flags(values: flags.FlagValues, argv: Sequence[str], config: str | None = None) -> None:
    """Defines tfloss's flags in `values`, afresh if an earlier run in this process did so.

    Args:
      values: where to define them; a script's own flags may be there too.
      argv: the command line, searched for `--config.key=value`.
      config: path of the recipe to use when `--config` is not given.
    """
    from ml_collections import config_flags

    for name in list(values):
        if name.startswith("config.") or values.find_module_defining_flag(name) == __name__:
            delattr(values, name)

    before = set(values)
    config_flags.DEFINE_config_file(
        "config",
        config,
        "The recipe: a Python file with get_config(). One value is changed with "
        "--config.key=value or --config.group.key=value.",
        flag_values=values,
        sys_argv=list(argv),
    )
    flags.DEFINE_string(
        "workdir",
        None,
        "The folder for everything that is written: checkpoints, events, exports. A run whose "
        "checkpoint lies there goes on from it.",
        flag_values=values,
    )
    flags.DEFINE_enum("mode", "train_and_eval", MODES, "What to do.", flag_values=values)
    flags.DEFINE_enum(
        "strategy",
        "auto",
        STRATEGY_NAMES,
        "How to use the devices; auto takes all workers that TF_CONFIG, TFLOSS_WORKERS or Slurm "
        "names, or all GPUs of this machine.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "replicas",
        None,
        "How many replicas: GPUs, or logical CPU devices where there is none.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "seed", 0, "Of weights, data order and dropout.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_flag(
        _JitFlag(
            "jit",
            "--jit compiles the step with XLA, --nojit nothing, --jit=loop the whole loop. "
            "--jit=auto, as without the flag: what is fastest.",
        ),
        flag_values=values,
    )
    flags.DEFINE(
        _WindowParser(),
        "profile",
        None,
        "Steps START:STOP to profile, for TensorBoard.",
        flag_values=values,
        serializer=flags.ArgumentSerializer(),
    )
    flags.DEFINE_integer(
        "overfit_batches",
        None,
        "Train on the first N batches only, again and again, for a quick look.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "max_steps",
        None,
        "Stop at this step if the recipe wants more, for a quick look.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "deterministic",
        False,
        "The same command gives the same bits, more slowly; what can't is an error.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "max_minutes",
        None,
        "After so many minutes save a checkpoint and end with exit code 124.",
        lower_bound=0.01,
        flag_values=values,
    )
    for name in set(values) - before:
        if not name.startswith("config."):
            _claim(values, name)


def parse_flags(
    argv: Sequence[str],
    config: str | None = None,
    values: flags.FlagValues | None = None,
) -> Options:
    """Defines and parses tfloss's flags.

    Args:
      argv: the command line, program name first.
      config: path of the recipe to use when `--config` is not given.
      values: where to define the flags; absl's own by default.

    Raises:
      FlagError: an unknown flag or config key (with the nearest valid one), a value of the
        wrong type, a recipe that is not there, a missing flag.
    """
    values = flags.FLAGS if values is None else values
    path = None
    expanded = list(argv)
    try:
        expanded = values.read_flags_from_files(expanded, force_gnu=False)
        path = _config_path(expanded) or config
        if path is not None:
            _check_exists(path)
        define_flags(values, argv, config)
        rest = values(list(argv))[1:]
    except flags.UnrecognizedFlagError as error:
        raise FlagError(_unknown_flag(error.flagname, values)) from None
    except flags.IllegalFlagValueError as error:
        raise FlagError(str(error)) from None
    except flags.DuplicateFlagError:
        raise
    except (flags.Error, AttributeError, KeyError, IndexError) as error:
        # If the recipe itself is broken, it breaks again in _bad_override and shows its line.
        raise FlagError(_bad_override(expanded, path) or str(error)) from None
    if rest:
        raise FlagError(f"Unexpected argument {rest[0]!r}. Every option is written --name=value.")
    for name, example in (("config", "configs/digits.py"), ("workdir", "runs/digits")):
        if values[name].value is None:
            raise FlagError(f"Flag --{name} is required, for instance --{name}={example}.")
    given: dict[str, Any] = {
        field.name: values[field.name].value for field in dataclasses.fields(Options)
    }
    given["workdir"] = Path(given["workdir"]).expanduser()
    return Options(**given)


class _WindowParser(flags.ArgumentParser):
    """START:STOP, two steps."""

    syntactic_help = "START:STOP"

    def parse(self, argument: Any) -> tuple[int, int]:
        match = re.fullmatch(r"(\d+):(\d+)", argument)
        if not match or not int(match[1]) < int(match[2]):
            raise ValueError("expected two steps START:STOP, START the lower one, as in 100:110")
        return int(match[1]), int(match[2])

    def flag_type(self) -> str:
        return "steps"


class _JitParser(flags.ArgumentParser):
    """What `tfloss.Trainer` takes as `jit`."""

    def parse(self, argument: Any) -> bool | str:
        if argument in ("loop", "auto"):
            return argument
        try:
            return flags.BooleanParser().parse(argument)
        except ValueError:
            raise ValueError("expected loop, auto, true or false") from None

    def flag_type(self) -> str:
        return "bool, loop or auto"


class _JitFlag(flags.Flag):
    """--jit and --nojit, as of a boolean flag, and --jit=loop."""

    def __init__(self, name: str, help: str):
        super().__init__(_JitParser(), None, name, None, help, boolean=True)

    def serialize(self) -> str:
        return f"--{self.name}={self.value}" if isinstance(self.value, str) else super().serialize()


def _claim(values: flags.FlagValues, name: str) -> None:
    """Counts a flag as ours (so that it can be defined afresh) and shows it under --help."""
    values.register_flag_by_module(__name__, values[name])
    values.register_key_flag_for_module(sys.argv[0], values[name])


def _config_path(argv: Sequence[str]) -> str | None:
    """The last `--config=path` or `--config path` of the command line."""
    path = None
    for i, argument in enumerate(argv):
        if argument == "--":
            break
        if match := re.fullmatch(r"--?config(=(.*))?", argument, re.DOTALL):
            path = match[2] if match[1] else next(iter(argv[i + 1 :]), None)
    return path


def _check_exists(path: str) -> None:
    file = Path(path.split(":")[0])
    if not file.is_file():
        names = [p.name for p in file.parent.glob("*.py")] if file.parent.is_dir() else []
        near = _nearest(file.name, names)
        hint = f" Did you mean {str(file.parent / near)!r}?" if near else ""
        raise FlagError(f"There is no config file {str(file)!r}.{hint}")


def _unknown_flag(name: str, values: flags.FlagValues) -> str:
    if name.startswith("config."):
        return f"Flag --{name} has no recipe to change: give --config=FILE before it."
    near = _nearest(name, list(values))
    return f"Unknown flag --{name}. " + (
        f"Did you mean --{near}?" if near else "--help lists the flags."
    )


def _bad_override(argv: Sequence[str], path: str | None) -> str | None:
    """What is wrong with the first `--config.key` that the recipe hasn't got, or None."""
    from ml_collections import config_flags

    from tfloss.app.config import keys

    if path is None:
        return None
    alone = flags.FlagValues()
    arguments = [argv[0], f"--config={path}"]
    config_flags.DEFINE_config_file("config", flag_values=alone, sys_argv=arguments)
    alone(arguments)
    known = keys(alone["config"].value)
    for argument in argv[1:]:
        match = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if match and match[1] not in known:
            return f"Unknown config key --config.{match[1]}." + _keys_near(match[1], known, path)
    return None


def _keys_near(key: str, known: Sequence[str], path: str) -> str:
    """The nearest valid key and, since `lr` isn't near `learning_rate`, all of its group."""
    group = key.rpartition(".")[0]
    prefix, where = f"{group}.", f"config.{group}"
    if not any(name.startswith(prefix) for name in known):
        prefix, where = "", path
    below = [name.removeprefix(prefix) for name in known if name.startswith(prefix)]
    near = _nearest(key.removeprefix(prefix), below)
    hint = f" Did you mean --config.{prefix}{near}?" if near else ""
    return f"{hint} {where} has: {', '.join(below)}."


def _nearest(name: str, valid: Sequence[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, valid, n=1, cutoff=0.5)), None)
