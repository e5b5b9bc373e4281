"""Finds the state of a model that Keras doesn't track. Host code.

Keras lists the variables that its layers made with `add_weight` or hold as `keras.Variable`s. It
lists no raw `tf.Variable`, no `tf.random.Generator`, no table, nothing in a `tf.Module`, and not
the states of a stateful RNN.
"""

from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from tfloss import _upstream

MUTABLE_TABLES = (tf.lookup.experimental.MutableHashTable, tf.lookup.experimental.DenseHashTable)
STATIC_TABLES = (tf.lookup.StaticHashTable, tf.lookup.StaticVocabularyTable)
_TABLES = MUTABLE_TABLES + STATIC_TABLES


def untracked(model: keras.Layer) -> Iterator[tuple[str, Any]]:
    """Yields what may hold state that Keras doesn't track, whether Keras tracks it or not.

    Args:
      model: A built model.

    Yields:
      name: Path of the layer, attribute and keys in it: `net/queues/left`.
      holder: A `tf.Variable`, `keras.Variable`, `tf.random.Generator` or table.
    """
    for path, layer in _upstream.layers_by_path(model):
        if isinstance(layer, _upstream.LOOKUP_LAYERS):
            continue  # what they hold only counts while they adapt
        for attribute, value in vars(layer).items():
            if not attribute.startswith("_self_"):  # TensorFlow's own record of the same objects
                yield from _within(f"{path}/{attribute}", value)


def variable_of(holder: Any) -> Any:
    """Returns the variable of a holder that `untracked` yields; None if it is a table."""
    if isinstance(holder, tf.random.Generator):
        return holder.state
    return None if isinstance(holder, _TABLES) else holder


def _within(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Searches an attribute. `keras.tree` takes Keras's own wrappers of tuples for leaves."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _within(f"{name}/{key}", part)
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _within(f"{name}/{index}", part)
    elif isinstance(value, (*_TABLES, tf.random.Generator, tf.Variable, keras.Variable)):
        yield name, value
    elif isinstance(value, tf.Module) and not isinstance(value, keras.Layer):
        for attribute, part in vars(value).items():
            if not attribute.startswith("_self_"):
                yield from _within(f"{name}/{attribute}", part)
