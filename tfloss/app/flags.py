"""The flags of a training script. Host code, without TensorFlow, so that a typo fails at once."""

import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from tfloss.app.config_overrides import apply_overrides, take_overrides
from tfloss.app.flag_errors import (
    FlagError,
    check_config,
    check_file_exists,
    config_error,
    unknown_flag,
)
from tfloss.app.flag_types import FollowFlag, JitFlag, StepRangeParser
from tfloss.distribute.strategy_names import STRATEGY_NAMES

if TYPE_CHECKING:
    from tfloss.step.trace_options import Jit

MODES = ("train", "train_and_eval", "eval", "export")


@dataclasses.dataclass(frozen=True)
class Options:
    """The parsed flags as plain values. `tfloss.app.Run` describes them."""

    config: Any
    workdir: Path
    mode: str
    strategy: str
    replicas: int | None
    seed: int
    jit: "Jit | None"
    profile: tuple[int, int] | None
    overfit_batches: int | None
    max_steps: int | None
    deterministic: bool
    max_minutes: float | None
    restore: str | None = None
    follow: bool | str = False
    dry_run: bool = False


def define_flags(values: flags.FlagValues, argv: Sequence[str], config: str | None = None) -> None:
    """Defines tfloss's flags. It first removes those of an earlier call in this process.

    Args:
      values: The set of flags to define them in. It may have flags of the script as well.
      argv: The command line, without overrides of the config.
      config: The path of the config file if `--config` is not given.
    """
    for name in list(values):
        if name.startswith("config.") or values.find_module_defining_flag(name) == __name__:
            delattr(values, name)
    before = set(values)
    _define_task_flags(values, argv, config)
    _define_limit_flags(values)
    _define_execution_flags(values)
    _define_look_flags(values)
    for name in set(values) - before:
        if not name.startswith("config."):
            _claim(values, name)


def parse_flags(
    argv: Sequence[str],
    config: str | None = None,
    values: flags.FlagValues | None = None,
) -> Options:
    """Defines tfloss's flags and parses a command line.

    Args:
      argv: The command line, program name first.
      config: The path of the config file if `--config` is not given.
      values: The set of flags to define them in. None stands for absl's own.

    Returns:
      The values of the flags.

    Raises:
      FlagError: A flag or a config key is unknown, a value has the wrong type, the config file does
        not exist or fails, or a required flag is missing.
    """
    values = flags.FLAGS if values is None else values
    path = None
    try:
        arguments, overrides = take_overrides(
            values.read_flags_from_files(list(argv), force_gnu=False)
        )
        path = _config_path(arguments) or config
        if path is not None:
            check_file_exists(path)
        define_flags(values, arguments, config)
        rest = values(arguments)[1:]
    except flags.UnrecognizedFlagError as error:
        raise FlagError(unknown_flag(error.flagname, values)) from None
    except flags.DuplicateFlagError:
        raise
    except flags.Error as error:
        raise FlagError(config_error(path, error) or str(error)) from None
    except Exception as error:
        if message := config_error(path, error):
            raise FlagError(message) from None
        raise
    if overrides and path is None:
        raise FlagError(
            f"{overrides[0].flag} overrides a config, and there is none. Add --config=FILE."
        )
    if path is not None:
        check_config(path, values["config"].value)
        apply_overrides(values["config"].value, overrides, path)
    if rest:
        raise FlagError(f"Unexpected argument {rest[0]!r}. Write every option as --name=value.")
    for name, example in (("config", "configs/digits.py"), ("workdir", "runs/digits")):
        if values[name].value is None:
            raise FlagError(f"Flag --{name} is required, for instance --{name}={example}.")
    given: dict[str, Any] = {
        field.name: values[field.name].value for field in dataclasses.fields(Options)
    }
    if given["dry_run"] and given["mode"] in ("eval", "export"):
        raise FlagError(f"--dry_run looks at training, and --mode={given['mode']} doesn't train.")
    if given["follow"] and given["mode"] != "eval":
        raise FlagError(f"--follow evaluates a run: it needs --mode=eval, not {given['mode']}.")
    if given["follow"] and given["restore"] is not None:
        raise FlagError(
            f"--follow evaluates every checkpoint, and --restore={given['restore']} chooses one: "
            "give one of them."
        )
    given["workdir"] = Path(given["workdir"]).expanduser()
    return Options(**given)


def _define_task_flags(values: flags.FlagValues, argv: Sequence[str], config: str | None) -> None:
    """Defines what to do, with which config, and where."""
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(
        "config",
        config,
        "Python file whose get_config() returns the config. Override a value with "
        "--config.key=value or --config.group.key=value, a list or tuple with "
        "--config.sizes=1,2,3, and any value but a text with --config.key=none.",
        flag_values=values,
        sys_argv=list(argv),
    )
    flags.DEFINE_string(
        "workdir",
        None,
        "Directory for checkpoints, event files and exports. Training resumes from its newest "
        "checkpoint.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "mode",
        "train_and_eval",
        MODES,
        "Train; train and evaluate; evaluate a checkpoint; or export it.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "restore",
        None,
        "Checkpoint that --mode=eval or export uses: a step, best (by the script's metric), or the "
        "name of a logged metric, such as val/accuracy. By default it is the newest one.",
        flag_values=values,
    )
    flags.DEFINE_flag(
        FollowFlag(
            "follow",
            "With --mode=eval: evaluate each new checkpoint once, until the run has ended. "
            "--follow takes them in their order, --follow=newest the newest one first.",
        ),
        flag_values=values,
    )
    flags.DEFINE_integer(
        "seed",
        0,
        "Seed for initial weights, data order and dropout.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "deterministic",
        False,
        "Give bit-identical results each time, at lower speed. It is an error if an operation of "
        "the model can't.",
        flag_values=values,
    )


def _define_limit_flags(values: flags.FlagValues) -> None:
    """Defines what shortens a run."""
    flags.DEFINE_integer(
        "max_steps",
        None,
        "Upper bound on the number of training steps.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_float(
        "max_minutes",
        None,
        "Save a checkpoint and exit with code 124 after this many minutes of training.",
        lower_bound=0.01,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "overfit_batches",
        None,
        "Train on the first N batches only, repeatedly, to see whether the model can fit them.",
        lower_bound=1,
        flag_values=values,
    )


def _define_look_flags(values: flags.FlagValues) -> None:
    """Defines what looks at the run and trains nothing."""
    flags.DEFINE_bool(
        "dry_run",
        False,
        "Report what the run would train; make one step, evaluate one batch and export, into a "
        "temporary directory; then stop. Nothing is left in the workdir.",
        flag_values=values,
    )


def _define_execution_flags(values: flags.FlagValues) -> None:
    """Defines devices, compilation and profiling."""
    flags.DEFINE_enum(
        "strategy",
        "auto",
        STRATEGY_NAMES,
        "Distribution strategy. auto uses all workers that TF_CONFIG, TFLOSS_WORKERS or Slurm "
        "describes, or else all GPUs of this machine.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "replicas",
        None,
        "Number of replicas: GPUs, or logical CPU devices on a machine without GPUs.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_flag(
        JitFlag(
            "jit",
            "Compilation with XLA: --jit compiles each step, --jit=loop compiles loops of many "
            "steps, --nojit compiles nothing. --jit=auto, the default, measures which is fastest.",
        ),
        flag_values=values,
    )
    flags.DEFINE(
        StepRangeParser(),
        "profile",
        None,
        "Range of steps START:STOP to profile. TensorBoard shows the profile.",
        flag_values=values,
        serializer=flags.ArgumentSerializer(),
    )


def _claim(values: flags.FlagValues, name: str) -> None:
    """Registers a flag as ours, to redefine it later, and shows it in --help."""
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
