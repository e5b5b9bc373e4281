"""What tfloss needs to know about the graphs of traced functions and the ops in them."""

import contextlib
import inspect
import threading
from collections.abc import Generator
from pathlib import PurePath
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.eager import lift_to_graph
from tensorflow.python.eager.polymorphic_function import function_context

from tfloss._upstream.patching import replaced

_local = threading.local()
_function_attributes: dict[str, list[str]] = {}  # by type of op: each access to `op_def` copies


@contextlib.contextmanager
def own_function_traces(owner: object) -> Generator[None]:
    """Gives a forward pass its own traces of the `tf.function`s that it calls.

    A `tf.function` keeps what it captured when it was first traced. So one that Keras traced to
    build a layer holds the initial weights as constants, and one that was traced in a
    `keras.StatelessScope` never updates statistics. The layers in it would silently not be trained.
    A trace can't be thrown away, but the context in which it was made is a part of its key.

    Args:
      owner: Identifies the pass.

    Yields:
      None.
    """

    def make(original: Any) -> Any:
        def make_function_context(scope_type: Any = None) -> Any:
            found = original(scope_type)
            current = getattr(_local, "owner", None)
            return found if current is None else found._replace(scope_type=(scope_type, current))

        return make_function_context

    before = getattr(_local, "owner", None)
    _local.owner = owner
    try:
        with replaced(function_context, "make_function_context", make):
            yield
    finally:
        _local.owner = before


def evaluated(tensor: tf.Tensor) -> tf.Tensor | None:
    """Computes a tensor of a graph that is still being traced, or None if it needs an input.

    TensorFlow does the same for the initial values of variables, with `lift_to_graph`.
    """

    def lifted() -> tf.Tensor:
        graph = tf.compat.v1.get_default_graph()
        copies: Any = lift_to_graph.lift_to_graph([tensor], graph)
        return copies[tensor]

    try:
        with tf.init_scope():
            return tf.function(lifted, autograph=False)()
    except lift_to_graph.UnliftableError:
        return None


def gradient_is_recorded() -> bool:
    """Returns False inside `tf.recompute_grad` or `keras.remat`, where tapes record nothing.

    The calls are public, but the behaviour (a nested tape records nothing either) is not
    documented.
    """
    probe: Any = tf.constant(1.0)
    with tf.GradientTape() as tape:
        tape.watch(probe)
        result = tf.identity(probe)
    gradient: Any = tape.gradient(result, probe)
    return gradient is not None


def terms_of_gradient(gradient: tf.Tensor) -> list[tf.Tensor] | None:
    """Returns what the uses of a variable added to its gradient, one tensor for each use.

    A tape sums the terms by a single `AddN`, and nothing public asks it for them.

    Returns:
      The terms; None if some of them were summed inside a loop or a nested function.
    """
    op = _without_identity(gradient).op
    terms = list(op.inputs) if op.type == "AddN" else [gradient]
    return None if any(_summed_inside(one) for one in terms) else terms


def _summed_inside(tensor: tf.Tensor, nested: bool = False) -> bool:
    tensor = _without_identity(tensor)
    op = tensor.op
    if op.type in ("PartitionedCall", "StatefulPartitionedCall"):
        graph = called_graph(op, op.get_attr("f").name)
        return graph is None or _summed_inside(graph.outputs[tensor.value_index], nested=True)
    return op.type in ("While", "StatelessWhile") or (nested and op.type == "AddN")


def _without_identity(tensor: tf.Tensor) -> tf.Tensor:
    while tensor.op.type == "Identity":
        tensor = tensor.op.inputs[0]
    return tensor


def captured_here(handle: tf.Tensor) -> tf.Tensor:
    """Returns the tensor that stands for a variable's resource handle in the current graph.

    `FuncGraph.capture` is the only way from a variable to its placeholder in a traced function.
    """
    graph = tf.compat.v1.get_default_graph()
    return graph.capture(handle) if hasattr(graph, "capture") else handle


def captured_handles(graph: Any) -> dict[str, int]:
    """Returns `{tensor name: id(handle)}` of the resources that a traced function has captured.

    A function nested in it may have captured them first. `FuncGraph.captures` is the only way from
    a placeholder to the variable's handle.
    """
    outer: dict[str, int] | None = None
    found: dict[str, int] = {}
    for given, here in getattr(graph, "captures", ()):
        if here.dtype != tf.resource:
            continue
        if isinstance(given, tf.__internal__.EagerTensor):
            found[here.name] = id(given)
        else:
            outer = captured_handles(given.graph) if outer is None else outer
            if given.name in outer:
                found[here.name] = outer[given.name]
    return found


def function_inputs(graph: Any) -> list[tf.Tensor]:
    """Returns the tensors that enter a function which is being traced: arguments and captures.

    While it is traced, `FuncGraph.inputs` is empty, and a small eager tensor that it captures looks
    like a constant. Only `FuncGraph.captures` tells that it is none.
    """
    captured = [here for _, here in getattr(graph, "captures", ())]
    arguments = [op.outputs[0] for op in graph.get_operations() if op.type == "Placeholder"]
    return list({id(one): one for one in (*captured, *arguments)}.values())


def function_graph(name: str) -> Any:
    """Returns an empty graph like that of a `tf.function`, from which `tf.init_scope` lifts ops.

    Such graphs are not public, and `tf.function` makes its own with a deferred creation of
    variables.
    """
    return tf.__internal__.FuncGraph(name)


def called_functions(op: tf.Operation) -> list[str]:
    """Returns the names of the functions that an op calls.

    Args:
      op: An op of a traced graph.
    """
    if op.type not in _function_attributes:
        attributes = [a.name for a in op.op_def.attr if a.type in ("func", "list(func)")]
        _function_attributes[op.type] = attributes
    values = [op.get_attr(name) for name in _function_attributes[op.type]]
    return [one.name for v in values for one in (v if isinstance(v, list) else [v])]


def called_graph(op: tf.Operation, name: str) -> Any:
    """Returns the graph of the function that an op calls by this name, or None if unknown.

    It is the graph as it was traced. A `tf.Graph` gives its functions only as protos, which have
    lost the source lines.
    """
    try:
        return op.graph._get_function(name).graph
    except (AttributeError, KeyError):
        return None


_DROPOUT = {
    (code.co_filename, code.co_name)
    for code in (inspect.unwrap(f).__code__ for f in (tf.nn.dropout, tf.compat.v1.nn.dropout))
}


def made_by_dropout(op: tf.Operation) -> bool:
    """Returns whether an op was made by `tf.nn.dropout`.

    Nothing tells which public function made an op. Its traceback is public, but that the function
    is in it under its own name is not documented.
    """
    return any((frame.filename, frame.name) in _DROPOUT for frame in op.traceback or ())


_LAYER_CALL = inspect.unwrap(keras.Layer.__call__).__code__


def made_in_layer_call(op: tf.Operation) -> bool:
    """Returns whether an op was made inside of the call of a Keras layer.

    Nothing tells which public function made an op, see `made_by_dropout`.
    """
    call = _LAYER_CALL.co_filename, _LAYER_CALL.co_name
    return any((frame.filename, frame.name) == call for frame in op.traceback or ())


def is_autograph_file(path: str) -> bool:
    """Returns whether a source file was generated by AutoGraph.

    AutoGraph maps most frames of a traceback back to the user's source. The files of the others
    can be told only by the beginning of their names.
    """
    return PurePath(path).name.startswith("__autograph_generated_file")
