"""Warm starts: loads the weights of a checkpoint into a model that may have changed since.

report = tfloss.load_weights(model, "runs/old", strict=False, rename={"encoder": "backbone"})
print(report)
"""

import dataclasses
import functools
import logging
import re
import warnings
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from tfloss import _upstream
from tfloss.checkpoint.directory import CheckpointDirectory
from tfloss.checkpoint.keras_files import H5, KERAS, weights_of_keras_file
from tfloss.checkpoint.layer_states import (
    LAYER_STATE_ADVICE,
    OwnState,
    assign_values,
    layer_state_problems,
    named_layer_states,
)
from tfloss.checkpoint.manifest import MANIFEST, again_if_deleted
from tfloss.checkpoint.mismatch import Mismatch
from tfloss.checkpoint.names import named_variables, random_states
from tfloss.checkpoint.saved_weights import (
    SavedWeights,
    weights_of_checkpoint,
    weights_of_export,
)
from tfloss.checkpoint.selection import check_selection, select
from tfloss.errors import CheckpointError, listed
from tfloss.inspect.traceback_filtering import filtered_tracebacks

_LOGGER = logging.getLogger("tfloss")
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
    ema: bool = False,
    step: int | None = None,
    best: str | None = None,
) -> LoadReport:
    """Loads a model's variables, and what its layers have besides. Host code.

    The states of random generators and the optimizer's variables are not loaded. Only checkpoints
    hold vocabularies, tables and the like. With another file, the model keeps its own, and a
    warning names them.

    Args:
      model: A built model.
      path: A workdir, a directory of checkpoints, or a checkpoint; `*.weights.h5`, `*.keras`, or a
        directory with one of these, as `hooks.ExportBest` writes it; or what `tfloss.export` wrote.
      strict: Whether every variable must be there with its shape and dtype. If not, the variables
        that match are loaded, and the report lists the others.
      rename: `{start of a saved path: start of the path in this model}`, in whole components:
        "encoder" does not match "encoder_2". The longest match applies. In a file of Keras, paths
        consist of attributes and classes: `encoder/dense/vars/0`.
      ema: Whether to load the moving averages of the weights from a checkpoint. What has no average
        is loaded as it is.
      step: The step of the checkpoint, if there are several. None: that of `best`, or the newest.
      best: A metric as logged, "val/accuracy": the checkpoint with its best value.

    Returns:
      A report of what was loaded.

    Raises:
      CheckpointError: There is nothing to load, it is corrupt, two variables get the same name, or,
        if `strict`, it doesn't match the model. No variable has been changed.
      CheckpointDeletedError: A trainer deleted the given checkpoint while it was read. If none is
        given, the next one is read.
    """
    if not model.built:
        raise CheckpointError(
            f"Model {model.name!r} has no variables yet. Call it on a batch before load_weights."
        )
    given = step is not None or (Path(path) / MANIFEST).exists()
    read = functools.partial(
        _read_matching, model, Path(path), strict, rename or {}, ema, step, best
    )
    weights, report, variables, values = read() if given else again_if_deleted(read)
    assign_values(variables, values)
    _upstream.finalize_states(model)
    _loaded.add(model)
    if weights.what != "checkpoint":
        _warn_of_layer_states(f"The {weights.what} {weights.path}", model)
    return report


def _read_matching(
    model: keras.Model,
    path: Path,
    strict: bool,
    rename: Mapping[str, str],
    ema: bool,
    step: int | None,
    best: str | None,
) -> tuple[SavedWeights, LoadReport, dict[str, Any], dict[str, Any]]:
    """Returns what is loaded, the report, the variables that match, and their saved values.

    Raises CheckpointError if `strict`, and the model doesn't match.
    """
    weights = _open(model, path, ema, step, best, check_order=not rename)
    where = f"The {weights.what} {weights.path}"
    random = random_states(model)
    variables: dict[str, Any] = {**named_variables(model), **weights.states}
    if weights.what == "checkpoint":
        variables |= named_layer_states(model)
    variables = {k: v for k, v in variables.items() if k not in {*random, *weights.covered}}
    saved_names = _saved_names(weights, rename)
    saved = {
        new: weights.entries[old]
        for new, old in saved_names.items()
        if new in variables or not (new in random or re.fullmatch(_SEED, new))
    }
    needed = {k: v for k, v in variables.items() if k in saved or k not in weights.optional}
    mismatch = Mismatch(saved, needed, weights.what)
    if strict and mismatch:
        raise CheckpointError(
            f"{where} doesn't match the model:\n{mismatch}\nNothing was loaded. "
            f"{weights.advice or mismatch.advice()}"
        )
    mismatched = mismatch.shapes | mismatch.dtypes
    matching = [name for name in variables if name in saved and name not in mismatched]
    loaded = weights.read([saved_names[name] for name in matching])
    values = {name: loaded[saved_names[name]] for name in matching}
    problems = layer_state_problems({name: variables[name] for name in matching}, values)
    if strict and problems:
        raise CheckpointError(
            f"{where} doesn't match the model:\n  {'; '.join(problems.values())}\nNothing was "
            f"loaded. {LAYER_STATE_ADVICE}"
        )
    matching = [name for name in matching if name not in problems]
    mismatched |= problems
    report = LoadReport(matching, mismatch.missing, mismatch.unexpected, list(mismatched.values()))
    return weights, report, {name: variables[name] for name in matching}, values


_loaded: weakref.WeakSet[keras.Model] = weakref.WeakSet()


def has_loaded(model: keras.Model) -> bool:
    """Returns whether `load_weights` was called for a model."""
    return model in _loaded


def _open(
    model: keras.Model,
    path: Path,
    ema: bool,
    step: int | None,
    best: str | None,
    *,
    check_order: bool,
) -> SavedWeights:
    """Finds out what a path is, and what can be loaded from it."""
    check_selection(step, best)
    is_checkpoint = (path / MANIFEST).exists()
    for directory in (path / "checkpoints", path) if path.is_dir() else ():
        if not is_checkpoint and (files := CheckpointDirectory(directory)).steps():
            newest = files.latest()
            if newest is None or step is not None or best is not None:
                newest = files.at(select(files, _LOGGER, step=step, best=best))
            return weights_of_checkpoint(newest, ema=ema)
    if step is not None or best is not None:
        wanted = f"best={best!r}" if step is None else f"step={step}"
        raise CheckpointError(f"{wanted}: {path} is no workdir with checkpoints to choose from.")
    if is_checkpoint:
        return weights_of_checkpoint(path, ema=ema)
    if ema and path.exists():
        raise CheckpointError(
            f"ema=True: only a checkpoint has weights and averages, and {path} is none. If it was "
            "written from the averages, as by ExportBest(..., ema=True), leave ema out."
        )
    if (path / "saved_model.pb").exists():
        return weights_of_export(path)
    found = [path]
    if path.is_dir():
        found = [one for one in sorted(path.iterdir()) if one.name.endswith((H5, KERAS))]
    if len(found) > 1:
        names = listed([one.name for one in found])
        raise CheckpointError(f"{path} has several files of weights: {names}. Give one of them.")
    if found and found[0].is_file() and found[0].name.endswith((H5, KERAS)):
        return weights_of_keras_file(model, found[0], check_order=check_order)
    raise CheckpointError(_nothing_in(path))


def _nothing_in(path: Path) -> str:
    """Returns an error message: what a path is, if it can't be loaded."""
    kinds = (
        "load_weights reads checkpoints of tfloss, *.weights.h5, *.keras, and what "
        "hooks.ExportBest and tfloss.export write."
    )
    if path.is_file():
        return (
            f"{path} is none of the files that load_weights reads. {kinds} For a legacy *.h5 or a "
            "*.weights.json use model.load_weights(path)."
        )
    if Path(f"{path}.index").exists():
        return (
            f"{path} was written by tf.train.Checkpoint. It doesn't have the paths of Keras "
            "variables, and lacks layers in dicts and lists. Restore it in the script that wrote "
            f"it, and call model.save_weights('name{H5}'). {kinds}"
        )
    nothing = f"There is no checkpoint in {path} or {path / 'checkpoints'}"
    if not path.exists():
        return f"{nothing}: it does not exist."
    beside = path / "export"
    return f"{nothing}." + (f" There is an export: {beside}." if beside.exists() else f" {kinds}")


def _warn_of_layer_states(where: str, model: keras.Model) -> None:
    """Warns of what a layer has besides variables, which only a checkpoint holds."""
    states = named_layer_states(model).items()
    own = [name for name, state in states if not isinstance(state, OwnState)]
    if own:
        warnings.warn(
            f"{where} has no vocabularies, tables and configurations of layers, so these stay as "
            f"they are in the model, unchecked: {listed(own)}. A checkpoint has them.",
            stacklevel=4,
        )


def _saved_names(weights: SavedWeights, rename: Mapping[str, str]) -> dict[str, str]:
    """Maps names in the model to names in the checkpoint.

    Raises CheckpointError if two variables of the checkpoint get the same name.
    """
    names: dict[str, str] = {}
    for old in weights.entries:
        new = _renamed(old, rename)
        new = weights.targets.get(new, new)
        if new in names:
            raise CheckpointError(
                f"rename={dict(rename)!r} gives two variables of the {weights.what}, "
                f"{names[new]!r} and {old!r}, the same name, {new!r}. Nothing was loaded. Rename "
                "one of them to something else."
            )
        names[new] = old
    return names


def _renamed(name: str, rename: Mapping[str, str]) -> str:
    matches = [old for old in rename if name == old or name.startswith(old.rstrip("/") + "/")]
    if not matches:
        return name
    old = max(matches, key=len)
    return (rename[old].rstrip("/") + "/" + name[len(old.rstrip("/")) :].lstrip("/")).strip("/")
