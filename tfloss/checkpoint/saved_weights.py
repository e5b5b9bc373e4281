"""The weights in one place, by name: in a checkpoint, or in an export. Host code.

`tfloss/checkpoint/keras_files.py` does the same for files of Keras. `load_weights` takes them all.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfloss import _upstream
from tfloss.checkpoint.directory import load_values
from tfloss.checkpoint.manifest import load_manifest
from tfloss.errors import CheckpointError

EXPORTED = "state"  # the attribute of an exported module that holds its variables by name
_MODEL, _EMA = "model/", "ema/"


@dataclasses.dataclass(frozen=True)
class SavedWeights:
    """What can be loaded from one place.

    Attributes:
      path: The checkpoint, file or directory.
      what: "checkpoint", "file" or "export", for messages.
      entries: `{name: {"shape": ..., "dtype": ...}}`, by the names there.
      read: Returns `{name: value}` of some names.
      targets: `{name there: name in the model}`, where these differ.
      states: `{name: state}` of what a layer loads itself, and no variable can be assigned.
      covered: Names of the model's variables that `states` load.
      optional: Names of the model's variables that this kind need not have.
      advice: Sentences for a mismatch, instead of those for checkpoints.
    """

    path: Path
    what: str
    entries: Mapping[str, Any]
    read: Callable[[Collection[str]], dict[str, Any]]
    targets: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    states: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    covered: Collection[str] = ()
    optional: Collection[str] = ()
    advice: str = ""


def weights_of_checkpoint(path: Path, *, ema: bool) -> SavedWeights:
    """Finds the weights in a checkpoint, which are named as in the model.

    Args:
      path: The directory of the checkpoint.
      ema: Whether to take the averages of the weights. What has none is taken as it is.

    Raises:
      CheckpointError: The checkpoint is corrupt, or has no averages.
    """
    saved = load_manifest(path)["variables"]
    entries = {k.removeprefix(_MODEL): v for k, v in saved.items() if k.startswith(_MODEL)}
    averages = {k.removeprefix(_EMA) for k in saved if k.startswith(_EMA)} if ema else set[str]()
    if ema and not averages:
        raise CheckpointError(
            f"ema=True: the checkpoint {path} has no averages of the weights, because the run was "
            "made without ema=. Nothing was loaded. Leave ema out to load the weights."
        )

    def read(names: Collection[str]) -> dict[str, np.ndarray]:
        stored = {name: (_EMA if name in averages else _MODEL) + name for name in names}
        values = load_values(path, stored.values())
        found = {name: values[stored[name]] for name in names}
        for name in averages.intersection(names):  # averages are float32 or wider
            found[name] = tf.cast(found[name], entries[name]["dtype"]).numpy()
        return found

    return SavedWeights(path, "checkpoint", entries, read)


def weights_of_export(path: Path) -> SavedWeights:
    """Finds the variables of the inference forward in a SavedModel of `tfloss.export`.

    Args:
      path: The directory of the SavedModel.

    Raises:
      CheckpointError: It can't be read, or the variables have no names.
    """
    bundle = str(path / "variables" / "variables")
    try:
        reader = tf.train.load_checkpoint(bundle)
        shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    except Exception as error:  # OpError, ValueError or others, depending on what is corrupt
        raise CheckpointError(
            f"{bundle}.* can't be read, so the export is corrupt ({error}). Nothing was loaded."
        ) from None
    keys = {_upstream.key_in_object_graph(key, EXPORTED): key for key in shapes}
    stored = {name: key for name, key in keys.items() if name is not None and not name.isdigit()}
    if not stored:
        raise CheckpointError(
            f"The SavedModel {path} has no names for its variables, so it was not written by "
            "tfloss.export, or by an earlier version. Load a checkpoint, or export it again."
        )
    entries = {
        name: {"shape": list(shapes[key]), "dtype": dtypes[key].name}
        for name, key in stored.items()
    }

    def read(names: Collection[str]) -> dict[str, np.ndarray]:
        try:
            return {name: np.asarray(reader.get_tensor(stored[name])) for name in names}
        except Exception as error:  # as above
            raise CheckpointError(
                f"{bundle}.* can't be read, so the export is corrupt ({error}). Nothing was loaded."
            ) from None

    advice = (
        "An export has only the variables that inference uses. strict=False loads those, and the "
        "report lists the others. For all of them, load a checkpoint."
    )
    return SavedWeights(path, "export", entries, read, advice=advice)
