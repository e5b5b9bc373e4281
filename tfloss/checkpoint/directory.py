"""The files of checkpoints: whole or absent, whenever the process is killed. Host code."""

import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfloss.checkpoint.difference import Difference
from tfloss.checkpoint.values import assign, is_accumulator, read
from tfloss.errors import CheckpointError
from tfloss.version import __version__

FORMAT = 1
_BUNDLE, _MANIFEST = "variables", "manifest.json"
# What a killed process may leave: `.partial_*` is rubbish; `.replaced_00000100` is a whole
# checkpoint that had to make room for a new one of the same step.
_PARTIAL, _REPLACED = ".partial_", ".replaced_"


class CheckpointDirectory:
    """A directory of checkpoints, `step_00000100` each. One process writes, any may read.

    Args:
      path: made when the first one is saved.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def steps(self) -> list[int]:
        """The steps of all whole checkpoints, in order. Other names are not looked at."""
        found = set()
        for manifest in self.path.glob(f"*/{_MANIFEST}"):
            number = re.search(r"\d{8,}$", manifest.parent.name)
            step = int(number[0]) if number else 0
            if manifest.parent in (self._target(step), self._replaced(step)):
                found.add(step)
        return sorted(found)

    def at(self, step: int) -> Path:
        """The directory of the checkpoint of a step."""
        target, replaced = self._target(step), self._replaced(step)
        return replaced if not target.exists() and replaced.exists() else target

    def latest(self) -> Path | None:
        """The newest checkpoint, or None."""
        steps = self.steps()
        return self.at(steps[-1]) if steps else None

    def delete(self, step: int) -> None:
        """Deletes one: first it stops being a checkpoint, then its files go."""
        aside = self.path / f"{_PARTIAL}deleted_{step}"
        for each in (self._replaced(step), self._target(step)):
            if each.exists():
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(each, aside)
        shutil.rmtree(aside, ignore_errors=True)

    def save(
        self,
        step: int,
        variables: Mapping[str, Any],
        extra: Mapping[str, Any] | None = None,
        *,
        check_finite: bool = True,
        write: bool = True,
    ) -> Path:
        """Writes a checkpoint and returns its directory. One of the same step is replaced.

        Args:
          step: names it.
          variables: `{name: variable}`.
          extra: anything JSON can hold; `restore` returns it.
          check_finite: refuse to write NaN or infinite weights, statistics and slots. A
            metric's variables and raw tf.Variables may be what they like: the next reset, or
            their owner, knows.
          write: whether this worker writes. All of them read, which may take all.

        Raises:
          CheckpointError: a value is not finite (the first such variable is named), there are
            no variables, or `extra` can't be written as JSON (it says where).
          OSError: it can't be written. Earlier checkpoints are not touched.
        """
        if not variables:
            raise CheckpointError(
                f"No variables to save at step {step}. Is the model built? Call it on a batch."
            )
        values = {name: read(variable) for name, variable in variables.items()}
        if check_finite:
            _check_finite(step, variables, values)
        if not write:
            return self._target(step)
        return self._write(step, values, _manifest(step, values, dict(extra or {})))

    def restore(
        self, path: str | Path, variables: Mapping[str, Any], *, ignore: Collection[str] = ()
    ) -> dict[str, Any]:
        """Assigns a checkpoint's values to the variables, all or none.

        Args:
          path: of one checkpoint.
          variables: `{name: variable}`; must have the names, shapes and dtypes of the file.
          ignore: names in the file that need not be restored, such as that of a constant
            learning rate, which is configuration: leave it out of `variables` and put it here.

        Returns:
          The `extra` it was saved with.

        Raises:
          CheckpointError: it lists what is missing, unexpected, of another shape or dtype, or
            says that the files are damaged; nothing was assigned.
        """
        path = Path(path)
        manifest = load_manifest(path)
        saved = {k: v for k, v in manifest["variables"].items() if k not in ignore}
        difference = Difference(saved, variables)
        if difference:
            raise CheckpointError(
                f"The checkpoint {path} doesn't fit:\n{difference}\nNothing was restored. "
                + difference.advice()
            )
        values = load_values(path, variables)
        for name, variable in variables.items():
            assign(variable, values[name])
        return manifest["extra"]

    def _target(self, step: int) -> Path:
        return self.path / f"step_{step:08d}"

    def _replaced(self, step: int) -> Path:
        return self.path / f"{_REPLACED}{step:08d}"

    def _write(self, step: int, values: Mapping[str, np.ndarray], manifest: str) -> Path:
        """Everything aside and on the disk first, then one rename. Values are on the host."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._clear_up()
        partial, target = self.path / f"{_PARTIAL}{step}", self._target(step)
        try:
            partial.mkdir()
            _write_bundle(partial / _BUNDLE, values)
            (partial / _MANIFEST).write_text(manifest)
            _sync(*partial.iterdir(), partial)
            if target.exists():
                os.replace(target, self._replaced(step))
            os.replace(partial, target)
            _sync(self.path)
        except Exception:
            shutil.rmtree(partial, ignore_errors=True)  # a full disk needs the room
            raise
        shutil.rmtree(self._replaced(step), ignore_errors=True)
        return target

    def _clear_up(self) -> None:
        """Removes what a killed process left; what it had moved out of the way comes back."""
        for replaced in self.path.glob(f"{_REPLACED}*"):
            target = self.path / replaced.name.replace(_REPLACED, "step_")
            if target.exists():
                shutil.rmtree(replaced, ignore_errors=True)
            else:
                os.replace(replaced, target)
        for partial in self.path.glob(f"{_PARTIAL}*"):
            shutil.rmtree(partial, ignore_errors=True)


def load_manifest(path: str | Path) -> dict[str, Any]:
    """What `manifest.json` of a checkpoint says. Raises CheckpointError if it can't be read."""
    try:
        manifest = json.loads((Path(path) / _MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a whole checkpoint ({error}). To go on from the one before, move it "
            "away."
        ) from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise CheckpointError(f"{path} was written in format {found}; this tfloss reads {FORMAT}.")
    entries = manifest.get("variables")
    described = isinstance(entries, dict) and all(
        isinstance(one, dict) and {"shape", "dtype"} <= set(one) for one in entries.values()
    )
    if not described or not isinstance(manifest.get("extra"), dict):
        raise CheckpointError(
            f"{Path(path) / _MANIFEST} lacks what it was written with, so the checkpoint is "
            f"damaged. To go on from the one before, move {path} away."
        )
    return manifest


def load_values(path: str | Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """`{name: value}` from a checkpoint. Raises CheckpointError if its files are damaged."""
    bundle = Path(path) / _BUNDLE
    try:
        reader = tf.train.load_checkpoint(str(bundle))
        return {name: reader.get_tensor(name) for name in names}
    except Exception as error:  # OpError, IndexError and others, by what is damaged
        raise CheckpointError(
            f"{bundle}.* can't be read, so the checkpoint is damaged ({error}). Nothing was "
            f"restored. To go on from the one before, move {path} away."
        ) from None


def _check_finite(
    step: int, variables: Mapping[str, Any], values: Mapping[str, np.ndarray]
) -> None:
    for name, value in values.items():
        variable = variables[name]
        if not isinstance(variable, keras.Variable) or is_accumulator(variable):
            continue
        if tf.as_dtype(value.dtype).is_floating and not np.isfinite(value).all():
            raise CheckpointError(
                f"Not saving a checkpoint at step {step}: {name!r} has NaN or infinite "
                "values. The checkpoints before it are as they were."
            )


def _manifest(step: int, values: Mapping[str, np.ndarray], extra: dict[str, Any]) -> str:
    manifest = {
        "format": FORMAT,
        "step": step,
        "variables": {
            name: {"shape": list(value.shape), "dtype": tf.as_dtype(value.dtype).name}
            for name, value in values.items()
        },
        "versions": {
            "tfloss": __version__,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
        "extra": extra,
    }
    try:
        return json.dumps(manifest, indent=1)
    except (TypeError, ValueError):
        where, value = _not_json("extra", extra)
        raise CheckpointError(
            f"Not saving a checkpoint at step {step}: {where} is a {type(value).__name__}, "
            "which JSON can't hold. Make it a plain int, float, str, list or dict."
        ) from None


def _not_json(where: str, value: Any) -> tuple[str, Any]:
    """The innermost part of a value that makes it impossible to write, and its place."""
    items = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list | tuple):
        items = enumerate(value)
    for key, part in items:
        try:
            json.dumps(part)
        except (TypeError, ValueError):
            return _not_json(f"{where}[{key!r}]", part)
    return where, value


def _write_bundle(prefix: Path, values: Mapping[str, np.ndarray]) -> None:
    try:
        tf.raw_ops.SaveV2(
            prefix=str(prefix),
            tensor_names=list(values),
            shape_and_slices=[""] * len(values),
            tensors=[tf.convert_to_tensor(value) for value in values.values()],
        )
    except tf.errors.OpError as error:
        raise OSError(f"Can't write {prefix}: {error.message}") from None


def _sync(*paths: Path) -> None:
    """The files' contents, or the directories' lists of names, are on the disk."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
