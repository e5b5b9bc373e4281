"""What tfloss needs to know about the state that Keras layers keep outside of their variables."""

# This package is the place for private attributes.
# pyright: reportPrivateUsage=false

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfloss._upstream.keras_layers import layers_by_path, seed_states

LOOKUP_LAYERS: Any = (keras.layers.StringLookup, keras.layers.IntegerLookup)
"""The layers that map between tokens and numbers. Their common base class is not public."""


def rnn_states(model: keras.Layer) -> list[keras.Variable]:
    """Returns the states of all RNNs with `stateful=True`, which have a row for each example.

    Keras tracks them nowhere. `layer.states` is public, but undocumented.
    """
    found: dict[int, keras.Variable] = {}
    for _, layer in layers_by_path(model):
        if getattr(layer, "stateful", False):
            states = keras.tree.flatten(vars(layer).get("states"))
            found |= {id(one): one for one in states if isinstance(one, keras.Variable)}
    return list(found.values())


def stateful_rnns(model: keras.Layer) -> list[str]:
    """Returns the paths of the RNNs with `stateful=True`. The layers need not be built."""
    return [
        path
        for path, layer in layers_by_path(model)
        if getattr(layer, "stateful", False) and "states" in vars(layer)
    ]


def finalize_states(model: keras.Layer) -> None:
    """Computes again what layers derive from their variables, such as Normalization's constants.

    Keras calls `finalize_state` when it has loaded the variables of a layer. Other code must call
    it too, but only `adapt`, which does, is documented. Keras's own lookup layers and
    Discretization keep nothing in variables.
    """
    without = (*LOOKUP_LAYERS, keras.layers.TextVectorization, keras.layers.Discretization)
    for _, layer in layers_by_path(model):
        finalize = getattr(layer, "finalize_state", None)
        if layer.built and callable(finalize) and not isinstance(layer, without):
            finalize()


def derived_state(model: keras.Layer) -> tuple[Any, ...]:
    """Returns a hashable value of what preprocessing layers keep outside of variables.

    A trace holds it as constants and tables, so it must be traced again when this changes.
    """
    found: list[Any] = []
    for _, layer in layers_by_path(model):
        if isinstance(layer, LOOKUP_LAYERS):
            found.append(id(layer.lookup_table.resource_handle))  # traces keep the handle alive
        elif isinstance(layer, keras.layers.Discretization):
            found.append(tuple(layer.bin_boundaries or ()))
        elif isinstance(layer, keras.layers.Normalization) and layer.built:
            constants: Any = (layer.mean, layer.variance)
            found += [one.numpy().tobytes() for one in constants]
    return tuple(found)


def overridden(layer: keras.Layer, method: str) -> Any:
    """Returns a method of a layer that its author wrote for saving; None if Keras wrote it.

    Keras calls `save_own_variables`, `load_own_variables`, `save_assets` and `load_assets` if a
    layer has them. What Keras's own layers do there is known.
    """
    for owner in type(layer).__mro__:
        if method in vars(owner):
            own = owner.__module__.partition(".")[0] not in ("keras", "tensorflow")
            return getattr(layer, method) if own else None
    return None


def lookup_in(layer: keras.Layer) -> Any:
    """Returns the lookup layer that a layer is or, as a TextVectorization, consists of; or None.

    A TextVectorization has no public name for it.
    """
    if isinstance(layer, keras.layers.TextVectorization):
        return layer._lookup_layer
    return layer if isinstance(layer, LOOKUP_LAYERS) else None


def set_vocabulary(layer: Any, tokens: list[Any], idf_weights: list[float] | None) -> None:
    """Gives a lookup layer that has no vocabulary yet the one that it was saved with.

    `set_vocabulary` is public, but refuses a layer that was traced before.
    """
    layer._frozen_vocab_size = None
    layer.set_vocabulary(tokens, idf_weights)


def idf_weights(layer: Any) -> list[float] | None:
    """Returns the weights of a lookup layer's tokens, which only its constructor accepts."""
    weights = getattr(layer, "idf_weights_const", None)
    return None if weights is None else weights.numpy().tolist()


class OnlySeedsChange(keras.StatelessScope):
    """Inside it, no variable of Keras is changed; and what would have changed is noted.

    RNNs with dropout draw masks in inference too, and don't use them. So the states of seed
    generators may change; their new values are forgotten. `add_update` is not documented.

    Args:
      model: The model.

    Attributes:
      seeds: `{id: path}` of the random states.
      changed: The other variables that were assigned, each with what `note` returned then.
    """

    def __init__(self, model: keras.Layer, note: Callable[[], Any]):
        super().__init__(initialize_variables=False)
        self.seeds = {id(state): path for path, state in seed_states(model)}
        self.changed: list[tuple[str, Any]] = []
        self._note = note

    def add_update(self, update: tuple[Any, Any]) -> None:
        """Is called for each assignment."""
        variable = update[0]
        if id(variable) not in self.seeds:
            self.changed.append((variable.path, self._note()))
        super().add_update(update)


def static_table_in(table: Any) -> Any:
    """Returns the StaticHashTable that holds the content of a static table; None if it is empty.

    A StaticVocabularyTable has no `export`, and no public access to the table that has it.
    """
    return table._table if isinstance(table, tf.lookup.StaticVocabularyTable) else table
