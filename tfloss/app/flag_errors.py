"""Messages for a wrong command line, with the nearest valid name. Host code, without TensorFlow."""

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from absl import flags

from tfloss.app.config import keys


class FlagError(Exception):
    """The command line is wrong. The message names the argument and the nearest valid one."""


def check_file_exists(path: str) -> None:
    """Checks that a config file exists.

    Args:
      path: The value of `--config`; an argument of `get_config` may follow after a colon.

    Raises:
      FlagError: There is no such file. The message names the nearest one.
    """
    file = Path(path.split(":")[0])
    if not file.is_file():
        names = [p.name for p in file.parent.glob("*.py")] if file.parent.is_dir() else []
        near = _nearest(file.name, names)
        hint = f" Did you mean {str(file.parent / near)!r}?" if near else ""
        raise FlagError(f"There is no config file {str(file)!r}.{hint}")


def unknown_flag(name: str, known: Iterable[str]) -> str:
    """Describes a flag that does not exist.

    Args:
      name: The name of the flag, without dashes.
      known: The names of the flags that exist.

    Returns:
      The message.
    """
    if name.startswith("config."):  # ml_collections' syntax for a key of the config
        return f"Flag --{name} overrides a config, and there is none. Add --config=FILE."
    near = _nearest(name, list(known))
    hint = f"Did you mean --{near}?" if near else "--help lists the flags."
    return f"Unknown flag --{name}. {hint}"


def unknown_key(argv: Sequence[str], path: str | None) -> str | None:
    """Describes the first `--config.key` of a command line that the config does not have.

    It loads the config again, so that a mistake inside of the config file shows with its traceback.

    Args:
      argv: The command line, program name first.
      path: The value of `--config`, or None if there is none.

    Returns:
      The message, or None if the config has all keys.
    """
    from ml_collections import config_flags

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
            return f"Unknown config key --config.{match[1]}." + _similar_keys(match[1], known, path)
    return None


def _similar_keys(key: str, known: Sequence[str], path: str) -> str:
    """The nearest valid key, and all keys of its group: `lr` is not near `learning_rate`."""
    group = key.rpartition(".")[0]
    prefix, owner = f"{group}.", f"config.{group}"
    if not any(name.startswith(prefix) for name in known):
        prefix, owner = "", path
    below = [name.removeprefix(prefix) for name in known if name.startswith(prefix)]
    near = _nearest(key.removeprefix(prefix), below)
    hint = f" Did you mean --config.{prefix}{near}?" if near else ""
    return f"{hint} {owner} has: {', '.join(below)}."


def _nearest(name: str, valid: Sequence[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, valid, n=1, cutoff=0.5)), None)
