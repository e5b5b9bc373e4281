"""Finds the state of a model that Keras doesn't track. Host code.

Keras lists the variables that its layers made with `add_weight` or hold as `keras.Variable`s. It
lists no raw `tf.Variable`, no `tf.random.Generator`, no table, nothing in a `tf.Module`, and not
the states of a stateful RNN.
"""

import functools
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from tfloss import _upstream

MUTABLE_TABLES = (tf.lookup.experimental.MutableHashTable, tf.lookup.experimental.DenseHashTable)
STATIC_TABLES = (tf.lookup.StaticHashTable, tf.lookup.StaticVocabularyTable)
_TABLES = MUTABLE_TABLES + STATIC_TABLES
_HOLDERS = (*_TABLES, tf.random.Generator, tf.Variable, keras.Variable)


def untracked(model: keras.Layer) -> Iterator[tuple[str, Any]]:
    """Yields what may hold state that Keras doesn't track, whether Keras tracks it or not.

    Args:
      model: A built model.

    Yields:
      name: Path of the layer, attribute and keys in it: `net/queues/left`.
      holder: A `tf.Variable`, `keras.Variable`, `tf.random.Generator` or table.
    """
    for path, layer in _upstream.layers_by_path(model):
        if not isinstance(layer, _upstream.LOOKUP_LAYERS):  # what they hold only counts in `adapt`
            yield from _in_attributes(path, layer)


def variable_of(holder: Any) -> Any:
    """Returns the variable of a holder that `untracked` yields; None if it is a table."""
    if isinstance(holder, tf.random.Generator):
        return holder.state
    return None if isinstance(holder, _TABLES) else holder


def _in_attributes(path: str, holder: Any) -> Iterator[tuple[str, Any]]:
    for attribute, value in vars(holder).items():
        # "_self_": TensorFlow's own record of the same objects.
        if _is_searched(value.__class__) and not attribute.startswith("_self_"):
            yield from _within(f"{path}/{attribute}", value)


def _within(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Searches an attribute. `keras.tree` takes Keras's own wrappers of tuples for leaves."""
    if isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            if _is_searched(part.__class__):
                yield from _within(f"{name}/{key}", part)
    elif isinstance(value, _HOLDERS):
        yield name, value
    elif isinstance(value, tf.Module) and not isinstance(value, keras.Layer):
        yield from _in_attributes(name, value)


@functools.lru_cache(maxsize=1024)
def _is_searched(cls: type) -> bool:
    """Whether values of a class can hold state: a checkpoint looks at thousands that can't."""
    return issubclass(cls, (dict, list, tuple, *_HOLDERS, tf.Module))
