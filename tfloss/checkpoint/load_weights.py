"""Warm starts: loads the weights of a checkpoint into a model that may have changed since.

report = tfloss.load_weights(model, "runs/old", strict=False, rename={"encoder": "backbone"})
print(report)
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from tfloss import _upstream
from tfloss.checkpoint.directory import CheckpointDirectory, load_values
from tfloss.checkpoint.layer_states import (
    LAYER_STATE_ADVICE,
    assign_values,
    layer_state_problems,
    named_layer_states,
)
from tfloss.checkpoint.manifest import MANIFEST, load_manifest
from tfloss.checkpoint.mismatch import Mismatch
from tfloss.checkpoint.names import named_variables, random_states
from tfloss.errors import CheckpointError
from tfloss.inspect.traceback_filtering import filtered_tracebacks

_PREFIX = "model/"
_SEED = r".*/seed_generator(#\d+)?"  # the state of a layer that this model may not have


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """The result of `load_weights`.

    Attributes:
      loaded: Names of the model's variables that were loaded.
      missing: Names of the model's variables that are not in the checkpoint.
      unexpected: Names that are only in the checkpoint, after renaming.
      mismatched: `"name (saved [1], here [2])"` of variables with another shape or dtype.
    """

    loaded: list[str]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]

    def __str__(self) -> str:
        """One line: how many variables were loaded, and the names of all others."""
        parts = [f"{len(self.loaded)} variables loaded"]
        for kind, names in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("mismatched", self.mismatched),
        ):
            if names:
                parts.append(f"{kind}: {', '.join(names)}")
        return "; ".join(parts)


@filtered_tracebacks
def load_weights(
    model: keras.Model,
    path: str | Path,
    *,
    strict: bool = True,
    rename: Mapping[str, str] | None = None,
) -> LoadReport:
    """Loads a model's variables from a checkpoint, and what its layers have besides. Host code.

    The states of random generators and the optimizer's variables are not loaded.

    Args:
      model: A built model.
      path: A checkpoint, a directory of checkpoints, or a workdir. The newest checkpoint is used.
      strict: Whether every variable must be in the checkpoint with its shape and dtype. If not,
        the variables that match are loaded, and the report lists the others.
      rename: `{start of a saved path: start of the path in this model}`, in whole components:
        "encoder" does not match "encoder_2". The longest match applies.

    Returns:
      A report of what was loaded.

    Raises:
      CheckpointError: There is no checkpoint, it is corrupt, two variables get the same name, or,
        if `strict`, it doesn't match the model. No variable has been changed.
    """
    if not model.built:
        raise CheckpointError(
            f"Model {model.name!r} has no variables yet. Call it on a batch before load_weights."
        )
    checkpoint = _find_checkpoint(Path(path))
    entries = load_manifest(checkpoint)["variables"]
    saved_names = _saved_names([n for n in entries if n.startswith(_PREFIX)], rename or {})
    random = random_states(model)
    variables: dict[str, Any] = {**named_variables(model), **named_layer_states(model)}
    variables = {k: v for k, v in variables.items() if k not in random}
    saved = {
        new: entries[old]
        for new, old in saved_names.items()
        if new in variables or not (new in random or re.fullmatch(_SEED, new))
    }
    mismatch = Mismatch(saved, variables)
    if strict and mismatch:
        raise CheckpointError(
            f"The checkpoint {checkpoint} doesn't match the model:\n{mismatch}\nNothing was "
            f"loaded. {mismatch.advice()}"
        )
    mismatched = mismatch.shapes | mismatch.dtypes
    matching = [name for name in variables if name in saved and name not in mismatched]
    loaded = load_values(checkpoint, [saved_names[name] for name in matching])
    values = {name: loaded[saved_names[name]] for name in matching}
    problems = layer_state_problems({name: variables[name] for name in matching}, values)
    if strict and problems:
        raise CheckpointError(
            f"The checkpoint {checkpoint} doesn't match the model:\n  "
            f"{'; '.join(problems.values())}\nNothing was loaded. {LAYER_STATE_ADVICE}"
        )
    matching = [name for name in matching if name not in problems]
    mismatched |= problems
    assign_values({name: variables[name] for name in matching}, values)
    _upstream.finalize_states(model)
    return LoadReport(matching, mismatch.missing, mismatch.unexpected, list(mismatched.values()))


def _find_checkpoint(path: Path) -> Path:
    if (path / MANIFEST).exists():
        return path
    for directory in (path / "checkpoints", path):
        newest = CheckpointDirectory(directory).latest()
        if newest is not None:
            return newest
    raise CheckpointError(f"There is no checkpoint in {path} or {path / 'checkpoints'}.")


def _saved_names(saved: Sequence[str], rename: Mapping[str, str]) -> dict[str, str]:
    """Maps names in the model to names in the checkpoint.

    Raises CheckpointError if two variables of the checkpoint get the same name.
    """
    names: dict[str, str] = {}
    for old in saved:
        new = _renamed(old.removeprefix(_PREFIX), rename)
        if new in names:
            both = f"{names[new].removeprefix(_PREFIX)!r} and {old.removeprefix(_PREFIX)!r}"
            raise CheckpointError(
                f"rename={dict(rename)!r} gives two variables of the checkpoint, {both}, the same "
                f"name, {new!r}. Nothing was loaded. Rename one of them to something else."
            )
        names[new] = old
    return names


def _renamed(name: str, rename: Mapping[str, str]) -> str:
    matches = [old for old in rename if name == old or name.startswith(old.rstrip("/") + "/")]
    if not matches:
        return name
    old = max(matches, key=len)
    return (rename[old].rstrip("/") + "/" + name[len(old.rstrip("/")) :].lstrip("/")).strip("/")
