"""The config of a run: saved beside its checkpoints, compared when it resumes. Host code."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfloss.common import nested_diff
from tfloss.common.replacement import replace_file
from tfloss.trainer.workdir import CONFIG_FILE


def keys(config: Any) -> list[str]:
    """Lists the keys of a config, such as `optimizer` and `optimizer.learning_rate`.

    Args:
      config: An `ml_collections.ConfigDict`, or a nested mapping.

    Returns:
      The keys of all levels, joined by dots, in order.
    """
    found: list[str] = []
    for key, value in config.items():
        found.append(str(key))
        if hasattr(value, "items"):  # a ConfigDict is not a Mapping
            found += [f"{key}.{below}" for below in keys(value)]
    return found


def to_json(config: Any) -> dict[str, Any]:
    """Converts a config to JSON values.

    Args:
      config: An `ml_collections.ConfigDict`.

    Returns:
      The same nested values. Those that JSON can't represent are replaced by their `repr`.
    """
    return json.loads(config.to_json_best_effort())


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Compares two configs.

    Args:
      old: The saved config, as nested JSON values.
      new: The current config, as nested JSON values.

    Returns:
      A line `key: old -> new` for each value that differs, in the order of the keys.
    """
    changed = nested_diff.differences(old, new, separator=".")
    return [f"{key}: {_text(before)} -> {_text(after)}" for key, (before, after) in changed.items()]


def write_config(config: Mapping[str, Any], workdir: Path) -> Path:
    """Saves a config atomically as `workdir/config.json`.

    A different one that is there stays as `superseded.config.json`.

    Args:
      config: The config as nested JSON values.
      workdir: The directory of the run. It is created if it is missing.

    Returns:
      The path of the file.
    """
    path = workdir / CONFIG_FILE
    workdir.mkdir(parents=True, exist_ok=True)
    content = json.dumps(config, indent=2) + "\n"
    replace_file(path, content, is_own=lambda old: False)  # any program can write such a file
    return path


def _text(value: Any) -> str:
    return str(value) if value is nested_diff.ABSENT else json.dumps(value)
