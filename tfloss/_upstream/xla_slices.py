"""Makes gradients of `tf.slice` in a copied graph those of a trace for XLA.

TensorFlow's Python writes this gradient as an op `Pad` in a graph, and as an op
`XlaDynamicUpdateSlice` in code that XLA compiles. XLA refuses a `Pad` whose sizes it doesn't know
before it runs, which is so if the begin of the slice is computed.
"""

import functools
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from tensorflow.compiler.tf2xla.python.xla import dynamic_update_slice  # as Keras does

from tfloss._upstream.graph_defs import call_function


def gradient_for_xla(node: Any, scope: Mapping[str, Any], library: Any) -> bool:
    """Replaces a node of a copied graph if it is the gradient of a slice.

    Args:
      node: `NodeDef`. It becomes a call of a function.
      scope: `{name: NodeDef}` of its graph or function.
      library: `FunctionDefLibrary` that gets the function.

    Returns:
      Whether the node was replaced.
    """
    found = _begin_and_shape(node, scope) if node.op == "Pad" else None
    if found is None:
        return False
    dtype, index = node.attr["T"].type, node.attr["Tpaddings"].type
    graph_def, _ = _update_call(tf.as_dtype(dtype), tf.as_dtype(index))
    call_function(node, graph_def, library)
    controls = [name for name in node.input if name.startswith("^")]
    node.input[:] = [node.input[0], *found, *controls]
    return True


def _begin_and_shape(node: Any, scope: Mapping[str, Any]) -> tuple[str, str] | None:
    """The begin of a slice and the shape of what was sliced, if a `Pad` is its gradient.

    Its paddings are `concat([reshape(begin, s), reshape(shape - size - begin, s)], 1)`.
    """

    def made(name: str, op: str) -> list[str]:
        one = scope.get(name.split(":")[0])
        return list(one.input) if one is not None and one.op == op else []

    parts = made(node.input[1], "ConcatV2")
    if len(parts) != 3:
        return None
    before, after = made(parts[0], "Reshape"), made(parts[1], "Reshape")
    if not before or not after or before[1] != after[1]:
        return None
    rest = made(after[0], "Sub")
    sizes = made(rest[0], "Sub") if rest and rest[1] == before[0] else []
    return (before[0], sizes[0]) if sizes else None


@functools.cache
def _update_call(dtype: tf.DType, index: tf.DType) -> tuple[Any, Any]:
    """A `GraphDef` that calls a function of a gradient, a begin and a shape.

    And the function, which TensorFlow forgets when nothing refers to it any more.
    """

    def update(gradient: tf.Tensor, begin: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
        zeros = tf.fill(shape, tf.zeros([], dtype))
        return dynamic_update_slice(zeros, gradient, begin)

    with tf.Graph().as_default() as graph:
        given = [tf.compat.v1.placeholder(one) for one in (dtype, index, index)]
        function = tf.function(update, autograph=False)
        function(*given)
    return graph.as_graph_def(), function
