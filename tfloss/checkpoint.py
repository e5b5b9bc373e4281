"""Checkpoints: named variables, written whole or not at all, checked before they are restored.

    directory = CheckpointDirectory("runs/mine/checkpoints")
    directory.save(100, named_variables(model), extra={"note": "..."})
    directory.restore(directory.latest(), named_variables(model))

A checkpoint is a directory `step_00000100` with a TensorFlow tensor bundle, `variables`, whose
keys are names (`tf.train.load_checkpoint` reads it), and `manifest.json`: step, shapes, dtypes,
versions and what else the caller keeps. Keras's own object graph is not used: it leaves out
layers in lists and dicts, keys optimizer slots by position, and restores by halves. All of this
is host code, cross-replica.
"""

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

from tfloss import _upstream
from tfloss.errors import CheckpointError
from tfloss.version import __version__

FORMAT = 1
_BUNDLE, _MANIFEST = "variables", "manifest.json"
_TEMPORARY = ".partial_"


def named_variables(model: keras.Model) -> dict[str, Any]:
    """Every variable of a model by its path: weights, statistics, seeds, metrics, tf.Variables.

    Layers may be held in attributes, lists, dicts, tuples, however nested. A seed generator is
    named after the layer that owns it, a raw `tf.Variable` after the layer and attribute. If
    two variables have one path, the later one gets `#1`.
    """
    owners = {id(state): name for name, state in _upstream.seed_states(model)}
    found: dict[str, Any] = {}
    for variable in [*model.variables, *model.metrics_variables]:
        name = owners.get(id(variable)) or str(variable.path)
        _add(found, name, variable)
    for path, layer in _upstream.layers_by_path(model):
        for attribute, value in vars(layer).items():
            if attribute.startswith("_self_"):  # TensorFlow's own record of the same
                continue
            leaves = (
                keras.tree.flatten(value) if isinstance(value, list | tuple | dict) else [value]
            )
            raw = [x for x in leaves if _is_tf_variable(x)]
            for index, variable in enumerate(raw):
                if not any(variable is other for other in found.values()):
                    suffix = f"/{index}" if len(leaves) > 1 else ""
                    _add(found, f"{path}/{attribute}{suffix}", variable)
    return found


def named_optimizer_variables(
    optimizer: keras.optimizers.Optimizer, variables: Iterable[Any]
) -> dict[str, Any]:
    """An optimizer's variables: `<path of the variable>/momentum` for slots, else their name.

    Args:
      optimizer: a built one.
      variables: those it was built for. Keras names a slot after its variable, with `_` for
        `/`; this finds which it was.
    """
    flat: dict[str, list[str]] = {}
    for variable in variables:
        flat.setdefault(variable.path.replace("/", "_"), []).append(variable.path)
    taken: dict[str, int] = {}
    found: dict[str, Any] = {}
    for slot in optimizer.variables:
        of = max((f for f in flat if slot.name.startswith(f + "_")), key=len, default=None)
        if of is None:
            _add(found, slot.name, slot)
        else:
            # Paths that differ only in / and _ have slots of the same name, in their order.
            paths, number = flat[of], taken.get(slot.name, 0)
            taken[slot.name] = number + 1
            _add(
                found,
                f"{paths[number % len(paths)]}{slot.name[len(of) :].replace('_', '/', 1)}",
                slot,
            )
    return found


def _add(found: dict[str, Any], name: str, variable: Any) -> None:
    key, number = name, 0
    while key in found:
        number += 1
        key = f"{name}#{number}"
    found[key] = variable


def _is_tf_variable(value: Any) -> bool:
    return isinstance(value, tf.Variable | tf.distribute.DistributedValues)


def _tf_variable(variable: Any) -> Any:
    return variable.value if isinstance(variable, keras.Variable) else variable


def read(variable: Any) -> np.ndarray:
    """The value on the host. Where replicas have values of their own: their mean.

    Integers that differ (seed states) are those of replica 0. A variable that is summed when
    read (a metric's) gives the sum.
    """
    value = _tf_variable(variable)
    if not isinstance(value, tf.distribute.DistributedValues):
        return np.asarray(value.numpy())
    if getattr(value, "aggregation", None) == tf.VariableAggregation.SUM:
        return np.asarray(value.read_value().numpy())
    local = [np.asarray(one.numpy()) for one in _replica_values(value)]
    same = all(np.array_equal(local[0], one) for one in local[1:])
    if same or not tf.as_dtype(value.dtype).is_floating:
        return local[0]
    return np.mean([one.astype(np.float64) for one in local], 0).astype(local[0].dtype)


def sync_replicas(model: keras.Model) -> None:
    """Gives every replica the mean of what each has its own value of (BatchNormalization)."""
    for variable in model.variables:
        value = _tf_variable(variable)
        if isinstance(value, tf.distribute.DistributedValues) and not variable.trainable:
            if tf.as_dtype(value.dtype).is_floating:
                variable.assign(read(variable))


def _replica_values(value: Any) -> tuple:
    return value.distribute_strategy.experimental_local_results(value)


class CheckpointDirectory:
    """A directory of checkpoints, `step_00000100` each.

    Args:
      path: made when the first one is saved.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def steps(self) -> list[int]:
        """The steps of all whole checkpoints, in order."""
        found = self.path.glob(f"step_*/{_MANIFEST}")
        return sorted(int(p.parent.name.removeprefix("step_")) for p in found)

    def at(self, step: int) -> Path:
        """The directory of the checkpoint of a step."""
        return self.path / f"step_{step:08d}"

    def latest(self) -> Path | None:
        """The newest checkpoint, or None."""
        steps = self.steps()
        return self.at(steps[-1]) if steps else None

    def delete(self, step: int) -> None:
        """Deletes one: first it stops being a checkpoint, then its files go."""
        aside = self.path / f"{_TEMPORARY}deleted_{step}"
        os.replace(self.at(step), aside)
        shutil.rmtree(aside, ignore_errors=True)

    def save(
        self,
        step: int,
        variables: Mapping[str, Any],
        extra: Mapping[str, Any] | None = None,
        *,
        check_finite: bool = True,
    ) -> Path:
        """Writes a checkpoint and returns its directory. One of the same step is replaced.

        Args:
          step: names it.
          variables: `{name: variable}`.
          extra: anything JSON can hold; `restore` returns it.
          check_finite: refuse to write NaN or infinite values.

        Raises:
          CheckpointError: a value is not finite; the first such variable is named.
          OSError: it can't be written. Earlier checkpoints are not touched.
        """
        values = {name: read(variable) for name, variable in variables.items()}
        for name, value in values.items() if check_finite else ():
            dtype = tf.as_dtype(value.dtype)
            if dtype.is_floating and not np.isfinite(value.astype(np.float32)).all():
                raise CheckpointError(
                    f"Not saving a checkpoint at step {step}: {name!r} has NaN or infinite "
                    "values. The checkpoints before it are as they were."
                )
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
            "extra": dict(extra or {}),
        }
        text = json.dumps(manifest, indent=1)
        self.path.mkdir(parents=True, exist_ok=True)
        for old in self.path.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(old, ignore_errors=True)  # of a process that was killed
        partial, target = self.path / f"{_TEMPORARY}{step}", self.at(step)
        partial.mkdir()
        tf.raw_ops.SaveV2(
            prefix=str(partial / _BUNDLE),
            tensor_names=list(values),
            shape_and_slices=[""] * len(values),
            tensors=[tf.convert_to_tensor(value) for value in values.values()],
        )
        (partial / _MANIFEST).write_text(text)
        _sync(partial)
        if target.exists():
            os.replace(target, self.path / f"{_TEMPORARY}replaced_{step}")
        os.replace(partial, target)
        shutil.rmtree(self.path / f"{_TEMPORARY}replaced_{step}", ignore_errors=True)
        return target

    def restore(
        self, path: Path, variables: Mapping[str, Any], *, ignore: Collection[str] = ()
    ) -> dict[str, Any]:
        """Assigns a checkpoint's values to the variables, all or none.

        Args:
          path: of one checkpoint.
          variables: `{name: variable}`; must have the names, shapes and dtypes of the file.
          ignore: names in the file that need not be restored.

        Returns:
          The `extra` it was saved with.

        Raises:
          CheckpointError: it lists what is missing, unexpected, of another shape or dtype;
            nothing was assigned.
        """
        manifest = load_manifest(path)
        saved = {k: v for k, v in manifest["variables"].items() if k not in ignore}
        difference = Difference(saved, variables)
        if difference:
            raise CheckpointError(
                f"The checkpoint {path} doesn't fit:\n{difference}\nNothing was restored. "
                + difference.advice()
            )
        reader = tf.train.load_checkpoint(str(path / _BUNDLE))
        values = {name: reader.get_tensor(name) for name in variables}
        for name, variable in variables.items():
            variable.assign(values[name])
        return manifest["extra"]


def load_manifest(path: Path) -> dict[str, Any]:
    """What `manifest.json` of a checkpoint says. Raises CheckpointError if it can't be read."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a whole checkpoint: {error}") from None
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} was written in format {manifest.get('format')}; this tfloss reads {FORMAT}."
        )
    return manifest


def _sync(directory: Path) -> None:
    """Everything in the directory, and its list of names, is on the disk."""
    for path in (*directory.iterdir(), directory):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class Difference:
    """How a checkpoint and some variables differ; false if they don't.

    Args:
      saved: `{name: {"shape": [...], "dtype": "..."}}`, from the manifest.
      variables: `{name: variable}`.
    """

    def __init__(self, saved: Mapping[str, Any], variables: Mapping[str, Any]):
        self.missing = [name for name in variables if name not in saved]
        self.unexpected = [name for name in saved if name not in variables]
        self.shapes, self.dtypes = [], []
        for name in variables:
            if name in saved:
                value = _tf_variable(variables[name])
                shape, dtype = list(value.shape), tf.as_dtype(value.dtype).name
                if shape != saved[name]["shape"]:
                    self.shapes.append(f"{name} (saved {saved[name]['shape']}, here {shape})")
                elif dtype != saved[name]["dtype"]:
                    self.dtypes.append(f"{name} (saved {saved[name]['dtype']}, here {dtype})")

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.shapes or self.dtypes)

    def __str__(self) -> str:
        rows = {
            "not in the checkpoint": self.missing,
            "only in the checkpoint": self.unexpected,
            "of another shape": self.shapes,
            "of another dtype": self.dtypes,
        }
        return "\n".join(f"  {what}: {_listed(names)}" for what, names in rows.items() if names)

    def advice(self) -> str:
        """What to do about it."""
        here, there = (sorted(map(_unnumbered, n)) for n in (self.missing, self.unexpected))
        if here and here == there and not self.shapes:
            return (
                "The names differ only in the numbers that Keras gives to layers without a name "
                "(dense, dense_1, ...): name the layers, or call keras.utils.clear_session() "
                "before making the model a second time in one process."
            )
        return (
            "If the model was changed on purpose, start in a new workdir, with "
            "tfloss.load_weights(model, path, strict=False, rename={...}) for a warm start."
        )


def _unnumbered(name: str) -> str:
    return re.sub(r"_\d+(?=/|_|$)", "", name)


def _listed(names: list[str]) -> str:
    more = f", ... and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more
