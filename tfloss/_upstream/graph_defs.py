"""The ops of a traced function as a `GraphDef`, and what it captures.

What a placeholder of a traced function stands for is known to `FuncGraph.captures` only. The
registry of ops, which isn't public either, knows which of them call functions.
"""

import functools
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import op_def_registry


def captured_values(graph: Any) -> dict[str, tf.Tensor]:
    """Returns `{tensor name: eager tensor}` of what a traced function has captured.

    Values that were computed in a function around it are left out.

    Args:
      graph: Graph of the function.
    """
    found: dict[str, tf.Tensor] = {}
    for given, here in getattr(graph, "captures", ()):
        if isinstance(given, tf.__internal__.EagerTensor):
            found[here.name] = given
        else:
            outer = captured_values(given.graph)
            if given.name in outer:
                found[here.name] = outer[given.name]
    return found


def used_variables(graph: Any) -> list[tf.Variable]:
    """Returns the variables that a traced function, and those around it, read through Python.

    Args:
      graph: Graph of the function.
    """
    found: dict[int, tf.Variable] = {}
    while graph is not None:
        found |= {id(one): one for one in getattr(graph, "variables", ())}
        graph = getattr(graph, "outer_graph", None)
    return list(found.values())


def called_names(node: Any) -> list[str]:
    """Returns the names of the functions that a `NodeDef` calls."""
    return [one.name for one in functions_of(node)]


def drop_functions(graph_def: Any) -> None:
    """Drops the functions of a `GraphDef` that no node calls, nor a function that is called."""
    functions = {one.signature.name: one for one in graph_def.library.function}
    found: set[str] = set()
    more = _called(graph_def.node)
    while more:
        found |= more
        known = [functions[name] for name in more if name in functions]
        more = {name for one in known for name in _called(one.node_def)} - found
    kept = [one for name, one in functions.items() if name in found]
    del graph_def.library.function[:]
    graph_def.library.function.extend(kept)


def rename_functions(graph_def: Any, suffix: str) -> None:
    """Renames the functions of a `GraphDef` that was changed: a process knows one of each name.

    Args:
      graph_def: `GraphDef`.
      suffix: What the new names end with.
    """
    library = graph_def.library
    known = {one.signature.name for one in library.function}
    for nodes in (graph_def.node, *(one.node_def for one in library.function)):
        for one in (one for node in nodes for one in functions_of(node)):
            one.name += suffix * (one.name in known)
    for one in library.function:
        one.signature.name += suffix
    del library.gradient[:]  # nothing takes the gradient of a copy


def call_function(node: Any, graph_def: Any, library: Any) -> None:
    """Makes a node call the function that a graph calls.

    Args:
      node: `NodeDef`.
      graph_def: `GraphDef` with one call of a function.
      library: `FunctionDefLibrary` that gets the function.
    """
    known = {one.signature.name for one in library.function}
    new = [one for one in graph_def.library.function if one.signature.name not in known]
    library.function.extend(new)
    call = next(one for one in graph_def.node if one.op.endswith("PartitionedCall"))
    node.op = call.op
    node.attr.clear()
    for name, value in call.attr.items():
        node.attr[name].CopyFrom(value)


def functions_of(node: Any) -> list[Any]:
    """Returns the functions that a `NodeDef` calls, as `NameAttrList`s."""
    if not _may_call(node.op):
        return []
    values = [value for value in node.attr.values() if value.WhichOneof("value") == "func"]
    lists = [value for value in node.attr.values() if value.WhichOneof("value") == "list"]
    return [*(one.func for one in values), *(one for each in lists for one in each.list.func)]


@functools.cache
def _may_call(kind: str) -> bool:
    """Whether an op of this type can name functions. A loop over all attributes takes longer."""
    definition: Any = op_def_registry.get(kind)
    return definition is None or any("func" in one.type for one in definition.attr)


def _called(nodes: Any) -> set[str]:
    return {one.name for node in nodes if _may_call(node.op) for one in functions_of(node)}
