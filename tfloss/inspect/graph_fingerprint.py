"""A fingerprint of a traced step, to compare the workers of a run. Host code, at trace time.

Workers whose steps have other collectives hang, or fail with an error about shapes. Workers whose
steps compute something else train a mixture of two objectives. So the ops of the step are counted,
by their type, the shapes and dtypes of their outputs, and the values of small constants. The order
and the names of ops don't count, because they may follow from the order of a Python set.
"""

from collections import Counter
from typing import Any

import numpy as np
import tensorflow as tf

from tfloss.inspect.source_lines import op_line
from tfloss.inspect.traced_ops import operations

_MAX_VALUES = 64  # of a constant whose values count
# Each worker has other replicas, so it has other numbers here.
_OWN_CONSTANTS = ("replica_id", "replica_id_in_sync_group")


def fingerprint(graph: tf.Graph) -> dict[str, int]:
    """Counts the kinds of ops of a graph, with those of the functions that it calls.

    Args:
      graph: The graph. Tracing need not be finished.

    Returns:
      `{kind: count}`. A kind describes the op for people.
    """
    return dict(Counter(_kind(op) for op, _ in operations(graph)))


def line_of(graph: tf.Graph, kinds: set[str]) -> dict[str, str]:
    """Returns the lines of the user's code that made ops of some kinds.

    Args:
      graph: The graph.
      kinds: Kinds of ops, as in `fingerprint`.

    Returns:
      `{kind: line}` of the first op of each kind that the user's code made.
    """
    found: dict[str, str] = {}
    for op, _ in operations(graph):
        kind = _kind(op)
        if kind in kinds and kind not in found and (line := op_line(op)) != "not in your code":
            found[kind] = line
    return found


def _kind(op: tf.Operation) -> str:
    outputs = ", ".join(_describe(one) for one in op.outputs)
    kind = f"{op.type}({outputs})"
    if op.type != "Const" or not op.outputs or _is_own(op.name):
        return kind
    return f"{kind}{_value(op)}"


def _describe(tensor: Any) -> str:
    return f"{tensor.dtype.name} {tensor.shape}"


def _value(op: tf.Operation) -> str:
    """The value of a small constant of numbers or strings."""
    shape = op.outputs[0].shape
    if not shape.is_fully_defined() or shape.num_elements() > _MAX_VALUES:
        return ""
    value = tf.make_ndarray(op.get_attr("value"))
    return f" = {np.array2string(value, threshold=_MAX_VALUES + 1, max_line_width=10_000)}"


def _is_own(name: str) -> bool:
    return any(part in _OWN_CONSTANTS for part in name.split("/"))
