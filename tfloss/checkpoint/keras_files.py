"""The weights in a file that Keras wrote, by the variables of a model. Host code.

`*.weights.h5` and `*.keras` have no paths of variables. An entry is named by the attributes,
classes and numbers of the layers: `blocks/dense_1/vars/0`. A model stores the same variables in the
same entries when it is saved, so what it would store says what to load. The variables themselves
are then checked and assigned by `load_weights`, all or none.
"""

import io
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfloss import _upstream
from tfloss.checkpoint.names import named_variables
from tfloss.checkpoint.saved_weights import SavedWeights
from tfloss.checkpoint.table_states import StringState
from tfloss.errors import CheckpointError

H5, KERAS = ".weights.h5", ".keras"
# What a compiled model stores besides its weights.
_NOT_LOADED = ("optimizer/", "_metrics/", "_compile_metrics/", "_compile_loss/")


def weights_of_keras_file(
    model: keras.Model, path: Path, *, check_order: bool = True
) -> SavedWeights:
    """Finds the weights in a file of `save_weights` or `Model.save`.

    Args:
      model: A built model.
      path: The file.
      check_order: Whether to refuse a file whose layers have changed places.

    Raises:
      CheckpointError: The file can't be read, or its layers have another order.
    """
    file = _opened(path)
    names = {id(v): name for name, v in named_variables(model).items()}
    groups = _upstream.weight_groups(model)
    if check_order:
        _check_order(path, file.names, groups)
    entries = {name: {"shape": s, "dtype": d} for name, (s, d) in file.entries.items()}
    targets: dict[str, str] = {}
    states: dict[str, Any] = {}
    covered: set[str] = set()
    for group, found in groups.items():
        stored = {_upstream.entry_name(group, key): value for key, value in found.values.items()}
        if all(isinstance(v, keras.Variable | tf.Variable) for v in stored.values()):
            targets |= {entry: names[id(v)] for entry, v in stored.items() if id(v) in names}
        elif found.layer is not None:  # merged LoRA weights, or what a layer of yours computes
            prefix, name = _upstream.entry_name(group, ""), f"{found.layer.path}/own"
            mine = [entries.pop(entry) for entry in list(entries) if entry.startswith(prefix)]
            if mine:
                entries[prefix] = {"shape": [len(mine)], "dtype": "string"}
            targets[prefix], states[name] = name, _LayerEntries(found.layer, found.values)
            covered |= {names[id(v)] for v in found.layer.variables if id(v) in names}
    covered -= set(targets.values())
    entries = {
        name: entry
        for name, entry in entries.items()
        if name in targets or not name.startswith(_NOT_LOADED)
    }

    def read(wanted: Collection[str]) -> dict[str, Any]:
        return {
            name: _of_layer(file, name) if targets.get(name) in states else file.read(name)
            for name in wanted
        }

    optional = [names[id(v)] for v in model.metrics_variables if id(v) in names]
    advice = (
        "In a file of Keras, an entry is named by the attributes and classes of its layers, and "
        "raw tf.Variables are missing. strict=False loads what fits, and the report lists the "
        "rest; rename={...} renames the beginnings of entries."
    )
    return SavedWeights(path, "file", entries, read, targets, states, covered, optional, advice)


class _LayerEntries(StringState):
    """The entries of a layer that stores something else than its variables."""

    def __init__(self, layer: Any, stored: Mapping[str, Any]):
        self._layer = layer
        self._shapes = {key: tuple(np.shape(value)) for key, value in stored.items()}

    def read_value(self) -> tf.Tensor:
        """Returns nothing: it is only loaded."""
        return tf.constant([], tf.string)

    def problem(self, value: Any) -> str | None:
        """Compares the keys and shapes of what `_of_layer` returned."""
        shapes = {key: array.shape for key, array in value.items()}
        return None if shapes == self._shapes else f"saved {shapes}, here {self._shapes}"

    def assign(self, value: Any) -> None:
        """Lets the layer load what it has stored."""
        self._layer.load_own_variables(value)


def _of_layer(file: Any, prefix: str) -> dict[str, np.ndarray]:
    """The entries of one layer, by key."""
    found = [entry for entry in file.entries if entry.startswith(prefix)]
    return {entry.removeprefix(prefix): file.read(entry) for entry in found}


def _opened(path: Path) -> Any:
    try:
        if not path.name.endswith(KERAS):
            return _upstream.WeightsFile(path)
        with zipfile.ZipFile(path) as archive:
            return _upstream.WeightsFile(io.BytesIO(archive.read("model.weights.h5")))
    except KeyError:
        raise CheckpointError(
            f"{path} has no model.weights.h5, so its weights are in several files. Use "
            "keras.saving.load_model(path). Nothing was loaded."
        ) from None
    except (OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path} can't be read, so it is corrupt or of another kind ({error}). Nothing was "
            "loaded."
        ) from None


def _check_order(path: Path, names: Mapping[str, str], groups: Mapping[str, Any]) -> None:
    """Checks that layers of one class have not changed places: their names are in the file.

    Keras finds a layer in a list by its class and number, so that it would load one for the other.
    """
    for group, found in groups.items():
        saved, parent = names.get(group), group.rpartition("/")[0]
        beside = {name: at for at, name in names.items() if at.rpartition("/")[0] == parent}
        if saved not in (None, found.name) and beside.get(found.name, group) != group:
            raise CheckpointError(
                f"{path} has its layers in another order: {group!r} is layer {saved!r} there, and "
                f"layer {found.name!r} here. Nothing was loaded. Make the layers in the order of "
                f"the file, or give rename={{{beside[found.name]!r}: {group!r}, ...}}."
            )
