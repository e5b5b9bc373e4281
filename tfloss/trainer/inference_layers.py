"""Finds the layers that the inference forward uses and the training forward doesn't. Trace time.

Nothing trains them, so evaluations and exports compute with their initial weights.
"""

from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.forward.context import plain_forward
from tfloss.inspect.report import Finding
from tfloss.inspect.source_lines import error_line, op_line
from tfloss.inspect.traced_ops import operations

_KIND = "Layer that only inference uses"
_CURE = "Nothing trains it. Call it in the training forward too, or load its weights."


def variables_used(graph: Any) -> Iterator[tuple[int, tf.Operation]]:
    """Yields the variables that the layers of a traced function use.

    Args:
      graph: `tf.Graph` of the function. Tracing need not be finished.

    Yields:
      Id of the variable's handle; the op that uses it.
    """
    for op, known in operations(graph):
        handles = [known[x.name] for x in op.inputs if x.dtype == tf.resource and x.name in known]
        # A regularizer or an update by an optimizer is no use.
        if handles and _upstream.made_in_layer_call(op):
            yield from ((handle, op) for handle in handles)


def inference_only(
    model: keras.Model, spec: Any, strategy: tf.distribute.Strategy, used: set[int]
) -> Iterator[Finding]:
    """Finds layers whose weights only the inference forward uses. Host code.

    Args:
      model: A built model.
      spec: `tf.TypeSpec`s of one replica's batch.
      strategy: The strategy of the model.
      used: Ids of the handles of the variables that the training forward uses.

    Yields:
      A finding for each layer, with the line that uses it.
    """
    unbuilt = [
        path
        for path, layer in _upstream.layers_by_path(model)
        if not layer.built and _upstream.has_own_build(layer)
    ]
    if unbuilt:  # the inference forward would create variables
        cure = f"It has no weights yet, so the inference forward was not looked at. {_CURE}"
        yield from (Finding("Layer that training doesn't call", p, "", cure) for p in unbuilt)
        return
    try:
        graph = _inference_graph(model, spec, strategy)
    except Exception as error:
        cure = "Evaluations and exports need an inference forward that takes these batches."
        said = str(error).splitlines()[0].rstrip(".") if str(error) else ""
        line = error_line(error)
        yield Finding("Inference forward that fails", f"{type(error).__name__}: {said}", line, cure)
        return
    paths = {
        id(one.handle): variable.path
        for variable in model.variables
        if keras.backend.is_float_dtype(variable.dtype)  # not the state of a seed, or a table
        for one in getattr(variable.value, "values", (variable.value,))
    }
    found: dict[str, str] = {}
    for handle, op in variables_used(graph):
        if handle not in used and handle in paths:
            found.setdefault(paths[handle].rpartition("/")[0], op_line(op))
    yield from (Finding(_KIND, path, line, _CURE) for path, line in found.items())


def _inference_graph(model: keras.Model, spec: Any, strategy: tf.distribute.Strategy) -> Any:
    """The graph of the inference forward, as on a single replica."""
    graph = _upstream.function_graph("inference")
    with (
        strategy.scope(),
        _upstream.as_single_replica(),
        graph.as_default(),
        _upstream.inputs_untouched(model),
        plain_forward(False),
    ):
        parts = tf.nest.flatten(spec, expand_composites=True)
        inputs = [p and tf.compat.v1.placeholder(p.dtype, p.shape) for p in parts]
        model(tf.nest.pack_sequence_as(spec, inputs, expand_composites=True), training=False)
    return graph
