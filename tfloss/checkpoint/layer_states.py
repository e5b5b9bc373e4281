"""What a model has besides variables, as a checkpoint holds it. Host code.

These are the tables of layers, the vocabularies and bins of preprocessing layers, and whatever a
layer keeps by methods of its own: `save_own_variables` and `save_assets`, as Keras calls them. Each
is an object that is read and assigned like a variable; its value is a string tensor.
"""

import io
import json
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import keras
import numpy as np
import tensorflow as tf

from tfloss import _upstream
from tfloss.checkpoint.table_states import StaticTableState, StringState, TableState
from tfloss.checkpoint.untracked import MUTABLE_TABLES, STATIC_TABLES, untracked
from tfloss.checkpoint.values import assign as assign_variable
from tfloss.checkpoint.values import read
from tfloss.common.files import escaping_name, write_files
from tfloss.common.unique_names import unique_name
from tfloss.errors import CheckpointError

_PREPROCESSING = (
    *_upstream.LOOKUP_LAYERS,
    keras.layers.TextVectorization,
    keras.layers.Discretization,
    keras.layers.Normalization,
    keras.layers.Hashing,
    keras.layers.HashedCrossing,
    keras.layers.CategoryEncoding,
)
# Entries of a configuration that say nothing about the result, or that are compared by themselves.
_NOT_COMPARED = {
    *("name", "trainable", "dtype", "epsilon"),
    *("vocabulary", "idf_weights", "vocabulary_size", "bin_boundaries"),
}

LAYER_STATE_ADVICE = (
    "A layer must be made with the configuration and the vocabulary that it was saved with, or "
    "have no vocabulary yet: then it takes the saved one."
)


@runtime_checkable
class LayerState(Protocol):
    """State that is no variable."""

    shape: tf.TensorShape
    dtype: tf.DType

    def read_value(self) -> tf.Tensor:
        """Returns the state."""
        ...

    def problem(self, value: np.ndarray) -> str | None:
        """Returns why a saved value can't be assigned, as the end of a sentence; or None."""
        ...

    def assign(self, value: np.ndarray) -> None:
        """Restores a saved value."""
        ...


def named_layer_states(model: keras.Model) -> dict[str, Any]:
    """Names everything that a model has besides variables.

    Args:
      model: A built model.

    Returns:
      `{name: state}`. A name is the path of a layer and an attribute, or one of "preprocessing",
      "own" and "assets".
    """
    found: dict[str, Any] = {}
    tables: set[int] = set()
    parts: set[int] = set()
    for name, holder in untracked(model):
        if isinstance(holder, MUTABLE_TABLES + STATIC_TABLES) and id(holder) not in tables:
            tables.add(id(holder))
            static = isinstance(holder, STATIC_TABLES)
            found[name] = StaticTableState(holder) if static else TableState(holder)
    for path, layer in _upstream.layers_by_path(model, by_parents=True):
        inner = _upstream.lookup_in(layer)
        if inner is not None and inner is not layer:
            parts.add(id(inner))  # Keras numbers its name, and the user can't choose another
        if isinstance(layer, _PREPROCESSING) and id(layer) not in parts:
            found[unique_name(f"{path}/preprocessing", found, "#")] = PreprocessingState(layer)
        if any(_upstream.overridden(layer, f"{verb}_own_variables") for verb in ("save", "load")):
            found[unique_name(f"{path}/own", found, "#")] = OwnState(layer)
        if _upstream.overridden(layer, "save_assets"):
            found[unique_name(f"{path}/assets", found, "#")] = AssetsState(layer)
    return found


def layer_state_problems(
    states: Mapping[str, Any], values: Mapping[str, np.ndarray]
) -> dict[str, str]:
    """Finds the states to which a saved value can't be assigned.

    Args:
      states: `{name: variable or state}`.
      values: `{name: saved value}`.

    Returns:
      `{name: "name (what differs)"}`.
    """
    found: dict[str, str] = {}
    for name, state in states.items():
        if isinstance(state, LayerState) and (problem := state.problem(values[name])):
            found[name] = f"{name} ({problem})"
    return found


def assign_values(variables: Mapping[str, Any], values: Mapping[str, np.ndarray]) -> None:
    """Assigns variables and states.

    Args:
      variables: `{name: variable or state}`.
      values: `{name: value}`.
    """
    for name, variable in variables.items():
        assign_variable(variable, values[name])
    if any(isinstance(one, OwnState) for one in variables.values()):
        # What such a layer saves may differ from its variables, as a merged LoRA does.
        for name, variable in variables.items():
            if not isinstance(variable, LayerState):
                assign_variable(variable, values[name])


class PreprocessingState(StringState):
    """The configuration of a preprocessing layer, and what it has adapted to."""

    def __init__(self, layer: Any):
        self._layer = layer

    def read_value(self) -> tf.Tensor:
        """Returns the state as JSON."""
        config = {k: v for k, v in self._layer.get_config().items() if k not in _NOT_COMPARED}
        text = json.dumps({"config": config, **self._learned()}, default=_plain, sort_keys=True)
        return tf.constant([text])

    def problem(self, value: np.ndarray) -> str | None:
        """Compares configuration and vocabulary. A layer that has none yet takes what was saved."""
        saved, here = (json.loads(one[0]) for one in (value, self.read_value().numpy()))
        for key, then in saved.pop("config").items():
            if then != (now := here["config"].get(key)):
                return f"saved with {key}={then!r}, here {now!r}"
        for what, then in saved.items():
            now = here.get(what)
            if now and then != now:
                return _first_difference(what, then or [], now)
        return None

    def assign(self, value: np.ndarray) -> None:
        """Gives a layer that has not adapted yet what another process adapted to."""
        saved, here = json.loads(value[0]), self._learned()
        if saved.get("vocabulary") and not here["vocabulary"]:
            lookup = _upstream.lookup_in(self._layer)
            _upstream.set_vocabulary(lookup, saved["vocabulary"], saved["idf_weights"])
        if saved.get("bin_boundaries") and not here["bin_boundaries"]:
            self._layer.bin_boundaries = saved["bin_boundaries"]

    def _learned(self) -> dict[str, Any]:
        layer = self._layer
        if isinstance(layer, keras.layers.Discretization):
            return {"bin_boundaries": layer.bin_boundaries and list(layer.bin_boundaries)}
        lookup = _upstream.lookup_in(layer)
        if lookup is None:
            return {}
        table = lookup.lookup_table
        known = _vocabularies.get(lookup)
        if known is None or known[0] is not table:  # a large one takes seconds to read
            tokens = [] if int(table.size()) == 0 else lookup.get_vocabulary()
            tokens = [one.item() if isinstance(one, np.generic) else one for one in tokens]
            known = _vocabularies[lookup] = (table, tokens)
        weights = _upstream.idf_weights(lookup)
        return {"vocabulary": known[1], "idf_weights": weights and weights[: len(known[1])]}


_vocabularies: weakref.WeakKeyDictionary[Any, tuple[Any, list[Any]]] = weakref.WeakKeyDictionary()


class OwnState(StringState):
    """What a layer's own `save_own_variables` and `load_own_variables` add to its variables."""

    def __init__(self, layer: keras.layers.Layer):
        self._layer = layer

    def read_value(self) -> tf.Tensor:
        """Returns what `save_own_variables` stores, except for the variables themselves."""
        found = {k: v for k, v in self._stored().items() if not _is_variable(v)}
        file = io.BytesIO()
        try:
            np.savez(file, allow_pickle=False, **{k: np.asarray(v) for k, v in found.items()})
        except ValueError as error:
            raise CheckpointError(
                f"save_own_variables of layer {self._layer.path or self._layer.name!r} stores "
                f"something that is no array: {error}. Store arrays of numbers or strings."
            ) from None
        return tf.constant([file.getvalue()])

    def problem(self, value: np.ndarray) -> str | None:
        """Compares the keys."""
        saved, here = (set(_arrays(one)) for one in (value, self.read_value().numpy()))
        return None if saved == here else f"saved with {sorted(saved)}, here {sorted(here)}"

    def assign(self, value: np.ndarray) -> None:
        """Calls `load_own_variables` with the variables as they are now, and what was saved."""
        variables = {k: read(v) for k, v in self._stored().items() if _is_variable(v)}
        self._layer.load_own_variables(variables | _arrays(value))

    def _stored(self) -> dict[str, Any]:
        store: dict[str, Any] = {}
        self._layer.save_own_variables(store)
        return store


class AssetsState(StringState):
    """The files that a layer's own `save_assets` writes."""

    def __init__(self, layer: Any):
        self._layer = layer

    def read_value(self) -> tf.Tensor:
        """Returns the paths of the files, each followed by the content of the file."""
        with tempfile.TemporaryDirectory() as directory:
            self._layer.save_assets(directory)
            files = sorted(path for path in Path(directory).rglob("*") if path.is_file())
            parts = [(str(p.relative_to(directory)).encode(), p.read_bytes()) for p in files]
        return tf.constant([part for pair in parts for part in pair], tf.string)

    def problem(self, value: np.ndarray) -> str | None:
        """Checks the names. The content can't be compared: `load_assets` decides."""
        if (bad := escaping_name(_names(value))) is not None:
            return f"it names {bad!r} as a file, which is outside of the layer's folder"
        missing = not hasattr(self._layer, "load_assets")
        return "the layer has save_assets, but no load_assets" if missing else None

    def assign(self, value: np.ndarray) -> None:
        """Calls `load_assets` with the files."""
        with tempfile.TemporaryDirectory() as directory:
            write_files(Path(directory), dict(zip(_names(value), value[1::2], strict=True)))
            self._layer.load_assets(directory)


def _names(value: np.ndarray) -> list[str]:
    """The names of the files of an `AssetsState`."""
    return [name.decode(errors="surrogateescape") for name in value[::2]]


def _is_variable(value: Any) -> bool:
    return isinstance(value, keras.Variable | tf.Variable)


def _arrays(value: np.ndarray) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(value[0]), allow_pickle=False) as file:
        return dict(file)


def _plain(value: Any) -> Any:
    """A value that JSON can hold, for one in a configuration that it can't."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return getattr(value, "__qualname__", type(value).__name__)


def _first_difference(what: str, then: list[Any], now: list[Any]) -> str:
    what = what.replace("_", " ")
    if len(then) != len(now):
        return f"saved with {len(then)} {what} entries, here {len(now)}"
    index = next(i for i, (a, b) in enumerate(zip(then, now, strict=True)) if a != b)
    return f"{what} differs: entry {index} was {then[index]!r}, here {now[index]!r}"
