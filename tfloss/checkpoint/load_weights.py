"""Warm starts: a checkpoint's weights for a model that may have changed since.

report = tfloss.load_weights(model, "runs/old", strict=False, rename={"encoder": "backbone"})
print(report)
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import keras

from tfloss.checkpoint import (
    CheckpointDirectory,
    Mismatch,
    assign,
    load_manifest,
    load_values,
    named_variables,
    random_states,
)
from tfloss.errors import CheckpointError

_PREFIX = "model/"
_SEED = r".*/seed_generator(#\d+)?"  # of a layer that this model may not have


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did: names of the model's variables, or of the checkpoint's."""

    loaded: list[str]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]

    def __str__(self) -> str:
        rows = [f"{len(self.loaded)} variables loaded"]
        for name in ("missing", "unexpected", "mismatched"):
            if found := getattr(self, name):
                rows.append(f"{name}: {', '.join(found)}")
        return "; ".join(rows)


def load_weights(
    model: keras.Model,
    path: str | Path,
    *,
    strict: bool = True,
    rename: Mapping[str, str] | None = None,
) -> LoadReport:
    """Loads a model's variables from a checkpoint, but no random states. Host code.

    The optimizer's variables are left alone too.

    Args:
      model: a built model.
      path: a checkpoint, a directory of them, or a workdir; of several, the newest.
      strict: every variable must be there with its shape and dtype. Otherwise what fits is
        loaded, and the report says what did not.
      rename: `{beginning of a saved path: what it is called now}`, whole components
        ("encoder" is not "encoder_2"); the longest that fits applies.

    Raises:
      CheckpointError: no checkpoint, or a damaged one; two names renamed to the same; or, if
        strict, one that doesn't fit. Nothing is loaded then.
    """
    if not model.built:
        raise CheckpointError(
            f"Model {model.name!r} has no variables yet. Call it on a batch before load_weights."
        )
    found = _find(Path(path))
    entries = load_manifest(found)["variables"]
    names = _renamed_all([n for n in entries if n.startswith(_PREFIX)], rename or {})
    random = random_states(model)
    variables = {k: v for k, v in named_variables(model).items() if k not in random}
    saved = {
        new: entries[old]
        for new, old in names.items()
        if new in variables or not (new in random or re.fullmatch(_SEED, new))
    }
    difference = Mismatch(saved, variables)
    if strict and difference:
        raise CheckpointError(
            f"The checkpoint {found} doesn't fit the model:\n{difference}\nNothing was loaded. "
            + difference.advice()
        )
    mismatched = [*difference.shapes, *difference.dtypes]
    refused = {row.split(" (")[0] for row in mismatched}
    fitting = [name for name in variables if name in saved and name not in refused]
    values = load_values(found, [names[name] for name in fitting])
    for name in fitting:
        assign(variables[name], values[names[name]])
    return LoadReport(fitting, difference.missing, difference.unexpected, mismatched)


def _find(path: Path) -> Path:
    if (path / "manifest.json").exists():
        return path
    for directory in (path / "checkpoints", path):
        newest = CheckpointDirectory(directory).latest()
        if newest is not None:
            return newest
    raise CheckpointError(f"There is no checkpoint in {path} or {path / 'checkpoints'}.")


def _renamed_all(saved: list[str], rename: Mapping[str, str]) -> dict[str, str]:
    """`{name in the model: name in the checkpoint}`. Raises CheckpointError if two collide."""
    names: dict[str, str] = {}
    for old in saved:
        new = _renamed(old.removeprefix(_PREFIX), rename)
        if new in names:
            both = f"{names[new].removeprefix(_PREFIX)!r} and {old.removeprefix(_PREFIX)!r}"
            raise CheckpointError(
                f"rename={dict(rename)!r} gives two variables of the checkpoint, {both}, one "
                f"name, {new!r}. Nothing was loaded. Rename one of them to something else."
            )
        names[new] = old
    return names


def _renamed(name: str, rename: Mapping[str, str]) -> str:
    fits = [old for old in rename if name == old or name.startswith(old.rstrip("/") + "/")]
    if not fits:
        return name
    old = max(fits, key=len)
    return (rename[old].rstrip("/") + "/" + name[len(old.rstrip("/")) :].lstrip("/")).strip("/")
