"""Messages for a wrong command line, with the nearest valid name. Host code, without TensorFlow."""

import difflib
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

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


def check_config(path: str, config: Any) -> None:
    """Checks what `get_config` returned.

    Args:
      path: The value of `--config`.
      config: What it returned.

    Raises:
      FlagError: It is no `ConfigDict`.
    """
    if not hasattr(config, "to_json_best_effort"):
        found = "None: is the return missing?" if config is None else f"a {type(config).__name__}."
        raise FlagError(
            f"get_config() of {path} must return an ml_collections.ConfigDict, and returned {found}"
        )


def config_error(path: str | None, error: BaseException) -> str | None:
    """Describes an error that was raised inside of a config file.

    Args:
      path: The value of `--config`.
      error: The error, or one that was raised in its place.

    Returns:
      A message with the lines of the config file; None if the error came from somewhere else.
    """
    if path is None:
        return None
    file = path.split(":")[0]
    following: BaseException | None = error
    while following is not None:
        frames = traceback.extract_tb(following.__traceback__)
        first = next((i for i, one in enumerate(frames) if one.filename == file), None)
        own = [] if first is None else frames[first:]
        text = traceback.format_list([one for one in own if "<frozen" not in one.filename])
        if own or isinstance(following, SyntaxError):
            text += traceback.format_exception_only(following)
            return f"the config file {file} failed:\n{''.join(text)}".rstrip()
        if isinstance(following, AttributeError) and following.name == "get_config":
            return f"the config file {file} has no function get_config()."
        following = following.__context__
    return None


def unknown_flag(name: str, known: Iterable[str]) -> str:
    """Describes a flag that does not exist.

    Args:
      name: The name of the flag, without dashes.
      known: The names of the flags that exist.

    Returns:
      The message.
    """
    near = _nearest(name, list(known))
    hint = f"Did you mean --{near}?" if near else "--help lists the flags."
    return f"Unknown flag --{name}. {hint}"


def unknown_key(key: str, config: Any, path: str) -> str:
    """Describes an override of a key that the config does not have.

    Args:
      key: The key, such as `optimizer.lr`.
      config: The config.
      path: The file of the config.

    Returns:
      The message.
    """
    return f"Unknown config key --config.{key}." + _similar_keys(key, keys(config), path)


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
