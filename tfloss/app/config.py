"""The recipe that a run used: kept beside its checkpoints, compared when it goes on. Host code."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE = "config.json"
_ABSENT = object()


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
    before, after = _flat(old), _flat(new)
    lines = []
    for key in dict.fromkeys([*before, *after]):
        pair = (before.get(key, _ABSENT), after.get(key, _ABSENT))
        # 1, 1.0 and True are equal in Python and not the same setting.
        if pair[0] != pair[1] or type(pair[0]) is not type(pair[1]):
            lines.append(f"{key}: " + " -> ".join(map(_show, pair)))
    return lines


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
    temporary = path.with_name(f".{FILE}.{os.getpid()}")
    temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return path


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _show(value: Any) -> str:
    return "absent" if value is _ABSENT else json.dumps(value)
