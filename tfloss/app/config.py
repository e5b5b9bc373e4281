"""The recipe that a run used: kept beside its checkpoints, compared when it goes on. Host code."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfloss.common import nested_diff
from tfloss.common.files import replace_file

FILE = "config.json"


def keys(config: Any) -> list[str]:
    """All keys of a ConfigDict or mapping, `optimizer` as well as `optimizer.learning_rate`."""
    found = []
    for key, value in config.items():
        found.append(str(key))
        if hasattr(value, "items"):  # a ConfigDict is no Mapping
            found += [f"{key}.{below}" for below in keys(value)]
    return found


def to_json(config: Any) -> dict[str, Any]:
    """A config as nested plain values; what JSON has no word for becomes its repr."""
    return json.loads(config.to_json_best_effort())


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line `key: old -> new` for each value that differs, in the order of the keys."""
    changed = nested_diff.differences(old, new, separator=".")
    return [f"{key}: " + " -> ".join(map(_shown, pair)) for key, pair in changed.items()]


def read_config(workdir: Path) -> dict[str, Any] | None:
    """The config saved in a workdir, or None if there is none.

    Raises:
      ValueError: the file is there but is not JSON.
    """
    path = workdir / FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(
            f"{path} is not a config that tfloss saved ({error}); remove it."
        ) from None


def write_config(config: Mapping[str, Any], workdir: Path) -> Path:
    """Saves a config (of JSON values) as `workdir/config.json`, whole or not at all."""
    path = workdir / FILE
    workdir.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(config, indent=2) + "\n")
    return path


def _shown(value: Any) -> str:
    return str(value) if value is nested_diff.ABSENT else json.dumps(value)
