"""Copies ops of a traced function into another one.

`tf.graph_util.import_graph_def` is public. It is not documented that it maps tensors of nodes that
the `GraphDef` lacks, and that a function which is being traced orders imported ops like its own.
What a placeholder of a traced function stands for is known to `FuncGraph.captures` only, and
functions of a `GraphDef` are run from eager code only if they are added to the private context.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import context


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
    return [one.name for one in _functions(node)]


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


def change_functions(
    library: Any, change: Callable[[Any], bool], suffix: str
) -> Callable[[Any], None]:
    """Changes the nodes of the functions of a library, and renames the functions that changed.

    A process knows one function of each name.

    Args:
      library: `FunctionDefLibrary`.
      change: Changes a `NodeDef`, and returns whether it did.
      suffix: What the new names end with.

    Returns:
      A function that changes the names in nodes that call these functions.
    """
    changed = {
        one.signature.name
        for one in library.function
        if any([change(node) for node in one.node_def])
    }
    callers = {one.signature.name: _called(one.node_def) for one in library.function}
    while more := {name for name, called in callers.items() if called & changed} - changed:
        changed |= more

    def rename(nodes: Any) -> None:
        for node in nodes:
            for one in _functions(node):
                one.name += suffix * (one.name in changed)

    for one in library.function:
        one.signature.name += suffix * (one.signature.name in changed)
        rename(one.node_def)
    del library.gradient[:]  # nothing takes the gradient of a copy
    return rename


def import_ops(
    graph_def: Any, given: Mapping[str, tf.Tensor], wanted: Sequence[str]
) -> list[tf.Tensor]:
    """Copies ops into the function that is being traced.

    Control dependencies of the caller don't apply to the copies: TensorFlow's importer compares
    tensors with ops there, and fails. Tensors of `given` may have them.

    Args:
      graph_def: The ops, without those of `given`.
      given: `{tensor name: tensor}` of the tensors that they use; eager ones are captured.
      wanted: Names of tensors.

    Returns:
      The tensors.
    """
    process: Any = context.context()
    for one in graph_def.library.function:  # a graph's own library doesn't reach the runtime
        if not process.has_function(one.signature.name):
            process.add_function_def(one)
    graph: Any = tf.compat.v1.get_default_graph()
    eager = tf.__internal__.EagerTensor
    here = {
        name: graph.capture(one) if isinstance(one, eager) else one for name, one in given.items()
    }
    with graph.control_dependencies(None):
        return tf.graph_util.import_graph_def(graph_def, here, list(wanted), name="step")


def read_variables(variables: Sequence[tf.Variable], *, joined: bool = False) -> list[tf.Tensor]:
    """Reads variables in the function that is being traced, hundreds of them in no time.

    Python takes half a millisecond for each `read_value`, and once more for each `tf.reshape`.

    Args:
      variables: The variables, of static shapes.
      joined: Whether the values become one vector. Then the variables have one dtype.

    Returns:
      The values; or a list of the vector.
    """
    ops = tf.compat.v1.GraphDef()
    given: dict[str, tf.Tensor] = {}
    for i, variable in enumerate(variables):
        here = getattr(variable, "values", (variable,))[0]  # of a mirrored one
        given[f"variable{i}:0"] = here.handle
        read = ops.node.add(name=f"read{i}", op="ReadVariableOp", input=[f"variable{i}"])
        read.attr["dtype"].type = variable.dtype.as_datatype_enum
        if joined:
            flat = ops.node.add(name=f"flat{i}", op="Reshape", input=[f"read{i}", "any"])
            flat.attr["T"].type = variable.dtype.as_datatype_enum
    if not joined:
        return import_ops(ops, given, [f"read{i}:0" for i in range(len(variables))])
    given["any:0"] = tf.constant([-1])
    names = [f"flat{i}" for i in range(len(variables))]
    if len(names) == 1:
        return import_ops(ops, given, ["flat0:0"])
    given["axis:0"] = tf.constant(0)
    joint = ops.node.add(name="joint", op="ConcatV2", input=[*names, "axis"])
    joint.attr["T"].type = variables[0].dtype.as_datatype_enum
    joint.attr["N"].i = len(variables)
    return import_ops(ops, given, ["joint:0"])


def _functions(node: Any) -> list[Any]:
    """The functions that a node names, as `NameAttrList`s."""
    values = [value for value in node.attr.values() if value.WhichOneof("value") == "func"]
    lists = [value for value in node.attr.values() if value.WhichOneof("value") == "list"]
    return [*(one.func for one in values), *(one for each in lists for one in each.list.func)]


def _called(nodes: Any) -> set[str]:
    return {name for node in nodes for name in called_names(node)}
