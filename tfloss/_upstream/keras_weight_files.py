"""What tfloss needs to know about the files that Keras and TensorFlow write weights to."""

# This package is the place for private attributes.
# pyright: reportPrivateUsage=false

import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras.src.saving import saving_lib

from tfloss._upstream.keras_layers import layers_by_path

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


@dataclasses.dataclass(frozen=True)
class WeightGroup:
    """What one layer stores in a file of Keras weights.

    Attributes:
      name: The name of the layer; None if it has none.
      layer: The layer, or None for what is no layer of the model, such as an optimizer.
      values: `{key: what the layer stores}`: variables, and maybe other values.
    """

    name: str | None
    layer: Any
    values: dict[str, Any]


def weight_groups(model: keras.Model) -> dict[str, WeightGroup]:
    """Returns where `save_weights` puts what: `{path in the file: group}`.

    The paths consist of attributes and class names, and no public function returns them. So Keras's
    own function for saving is called, with a store that keeps variables instead of their values.

    Args:
      model: A built model.
    """
    layers = {id(layer): layer for _, layer in layers_by_path(model)}
    store = _Recorder()
    visited = _Visited(store)
    saving_lib._save_state(
        model, weights_store=store, assets_store=None, inner_path="", visited_saveables=visited
    )
    return {
        path: WeightGroup(store.names[path], layers.get(store.owners.get(path, 0)), values)
        for path, values in store.groups.items()
    }


class _Recorder(saving_lib.H5IOStore):
    """A store that notes what is written to it."""

    def __init__(self):
        self.groups: dict[str, dict[str, Any]] = {}
        self.names: dict[str, str | None] = {}
        self.owners: dict[str, int] = {}
        self.path = ""

    def __bool__(self) -> bool:
        return True

    def make(self, path: str, metadata: Any = None) -> "_Recorder":
        """Begins a group."""
        self.path = path
        self.groups.setdefault(path, {})
        self.names[path] = (metadata or {}).get("name")
        return self

    def __setitem__(self, key: str, value: Any) -> None:
        self.groups[self.path][key] = value


class _Visited(set[int]):
    """The ids of the objects that are saved. Each is added right after it was written."""

    def __init__(self, store: _Recorder):
        super().__init__()
        self._store = store

    def add(self, element: int) -> None:
        """Notes whose group the last one is."""
        super().add(element)
        self._store.owners.setdefault(self._store.path, element)


class WeightsFile:
    """An open file of Keras weights. Keras's own reader checks links and sizes.

    Args:
      path_or_io: The path of the file, or its content.

    Attributes:
      entries: `{"path/vars/key": (shape, dtype)}`, see `entry_name`.
      names: `{path: name of the layer}`.

    Raises:
      OSError: It is not an HDF5 file.
    """

    def __init__(self, path_or_io: Path | io.BytesIO):
        self._store: Any = saving_lib.H5IOStore(path_or_io, mode="r")
        self.entries: dict[str, tuple[list[int], str]] = {}
        self.names: dict[str, str] = {}

        def visit(name: str, node: Any) -> None:
            group, _, last = f"/{name}".rpartition("/vars")
            path = group.lstrip("/")
            if not last and "name" in node.attrs:
                self.names[path] = str(node.attrs["name"])
            elif last.count("/") == 1 and hasattr(node, "shape"):
                dtype = str(node.attrs.get("dtype", node.dtype))
                self.entries[entry_name(path, last[1:])] = (list(node.shape), dtype)

        self._store.h5_file.visititems(visit)

    def read(self, entry: str) -> np.ndarray:
        """Returns the value of an entry."""
        path, _, key = f"/{entry}".rpartition("/vars/")
        return self._store.get(path.lstrip("/"))[key]

    def close(self) -> None:
        """Closes the file."""
        self._store.close()


def entry_name(path: str, key: str) -> str:
    """Returns the name of an entry of a `WeightsFile`."""
    return f"{path}/vars/{key}".lstrip("/")


def key_in_object_graph(key: str, attribute: str) -> str | None:
    """Returns the key of a dict from the name of a tensor in a SavedModel or `tf.train.Checkpoint`.

    TensorFlow escapes slashes and dots in it. The names are stable, but not documented.

    Args:
      key: The name of the tensor: `state/net.Skernel/.ATTRIBUTES/VARIABLE_VALUE`.
      attribute: The attribute that holds the dict: "state".

    Returns:
      The key, `net/kernel`; None if the tensor is something else.
    """
    if not (key.startswith(f"{attribute}/") and key.endswith(_VALUE)):
        return None
    escaped = key[len(attribute) + 1 : -len(_VALUE)]
    return re.sub(r"\.(.)", lambda found: "/" if found[1] == "S" else found[1], escaped)
