"""Remembers which tensors of a graph were computed of the global batch. Replica code, traced.

These are the results of `tfloss.global_sum` and `tfloss.global_mean`, and of what replicas reduce
or gather. A graph doesn't tell them from others: the ops depend on the strategy.
"""

import weakref
from collections.abc import Collection
from typing import Any

import tensorflow as tf

_names: "weakref.WeakKeyDictionary[Any, set[str]]" = weakref.WeakKeyDictionary()  # by graph


def note_reduced(result: Any) -> Any:
    """Notes that tensors were computed of the global batch, and returns them.

    Args:
      result: Tensor or a nest of them. Eager ones are left out.
    """
    for one in tf.nest.flatten(result, expand_composites=True):
        if tf.is_symbolic_tensor(one):
            _names.setdefault(one.graph, set()).add(one.name)
    return result


def reduced_names() -> Collection[str]:
    """Returns the names of those tensors of the current graph."""
    return _names.get(tf.compat.v1.get_default_graph(), ())
