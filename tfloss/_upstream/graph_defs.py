"""Copies ops of a traced function into another one.

`tf.graph_util.import_graph_def` is public, but Python makes an object of each op. So the ops become
a `FunctionDef`, which needs the private context to be known to the runtime, and the registry of ops
to name their results. What a placeholder of a traced function stands for is known to
`FuncGraph.captures` only, and which ops run without a result that is used to
`FuncGraph.control_outputs`.
"""

import itertools
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import context
from tensorflow.python.framework import op_def_registry

_numbers = itertools.count()


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


def is_op(name: str) -> bool:
    """Returns whether a `NodeDef.op` is an op, and not the name of a function."""
    return op_def_registry.get(name) is not None


def call_ops(
    graph_def: Any,
    given: Mapping[str, tf.Tensor],
    wanted: Sequence[str],
    always: Collection[str] = (),
) -> list[tf.Tensor]:
    """Calls ops as one function, in the function that is being traced.

    Python spends no time on the single ops, as it does if they are imported.

    Args:
      graph_def: The ops, without those of `given`.
      given: `{tensor name: tensor}` of the tensors that they use; eager ones are captured.
      wanted: Names of tensors.
      always: Names of ops that run even if no wanted tensor needs them. Ops that aren't there are
        ignored.

    Returns:
      The tensors, of unknown shapes.
    """
    function = graph_def.library.function.add()
    function.signature.name = f"tfloss_ops_{next(_numbers)}"
    function.signature.is_stateful = True
    function.node_def.extend(graph_def.node)
    made = {node.name: _results(node) for node in function.node_def}
    known: dict[str, tuple[str, int]] = {}
    for number, (name, one) in enumerate(given.items()):
        argument = function.signature.input_arg.add(name=f"x{number}")
        argument.type = one.dtype.as_datatype_enum
        known[name] = argument.name, argument.type

    def found(name: str) -> tuple[str, int]:
        node, _, number = name.partition(":")
        number = int(number or 0)
        return known.get(f"{node}:{number}") or made[node][number]

    for node in function.node_def:
        node.input[:] = [name if name[0] == "^" else found(name)[0] for name in node.input]
    for number, name in enumerate(wanted):
        result = function.signature.output_arg.add(name=f"y{number}")
        function.ret[result.name], result.type = found(name)
    for number, name in enumerate(name for name in sorted(always) if name in made):
        function.signature.control_output.append(f"z{number}")
        function.control_ret[f"z{number}"] = name
    _add_functions(graph_def.library)
    # A function stays in the process until it is removed.
    name, process = function.signature.name, _process()
    weakref.finalize(_outermost_graph(), process.remove_function, name).atexit = False
    types = [one.type for one in function.signature.output_arg]
    options = _process().function_call_options.config_proto_serialized  # as of all calls
    return tf.raw_ops.StatefulPartitionedCall(
        args=list(given.values()), Tout=types, f=name, config_proto=options
    )


def _results(node: Any) -> list[tuple[str, int]]:
    """Name in a `FunctionDef`, and dtype, of each result of a node."""
    found: list[tuple[str, int]] = []
    definition: Any = op_def_registry.get(node.op)
    for one in definition.output_arg:
        if one.type_list_attr:
            types = node.attr[one.type_list_attr].list.type
        else:
            count = node.attr[one.number_attr].i if one.number_attr else 1
            types = [one.type or node.attr[one.type_attr].type] * count
        found += [(f"{node.name}:{one.name}:{i}", dtype) for i, dtype in enumerate(types)]
    return found


def _add_functions(library: Any) -> None:
    """Makes the process know functions; a graph's own library doesn't reach the runtime."""
    process = _process()
    for one in library.function:
        if not process.has_function(one.signature.name):
            process.add_function_def(one)


def _process() -> Any:
    return context.context()


def _outermost_graph() -> Any:
    graph: Any = tf.compat.v1.get_default_graph()
    while getattr(graph, "outer_graph", None) is not None and graph.outer_graph.building_function:
        graph = graph.outer_graph
    return graph


def read_variables(variables: Sequence[tf.Variable], *, joined: bool = False) -> list[tf.Tensor]:
    """Reads variables in the function that is being traced, hundreds of them in no time.

    Python takes half a millisecond for each `read_value`, and once more for each `tf.reshape`.

    Args:
      variables: The variables, of static shapes.
      joined: Whether the values become one vector. Then the variables have one dtype.

    Returns:
      The values; or a list of the vector.
    """
    if not variables:
        return []
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
            flat.attr["Tshape"].type = tf.int32.as_datatype_enum
    names = [f"flat{i}" if joined else f"read{i}" for i in range(len(variables))]
    shapes = [one.shape for one in variables]
    if joined:
        given["any:0"] = tf.constant([-1])
        shapes = [[sum(one.num_elements() for one in shapes)]]
        if len(names) > 1:
            given["axis:0"] = tf.constant(0)
            joint = ops.node.add(name="joint", op="ConcatV2", input=[*names, "axis"])
            joint.attr["T"].type = variables[0].dtype.as_datatype_enum
            joint.attr["Tidx"].type = tf.int32.as_datatype_enum
            joint.attr["N"].i = len(variables)
            names = ["joint"]
    # What follows the call follows all reads, and not only the results.
    values = call_ops(ops, given, names, [f"read{i}" for i in range(len(variables))])
    for value, shape in zip(values, shapes, strict=True):
        value.set_shape(shape)
    return values


def _functions(node: Any) -> list[Any]:
    """The functions that a node names, as `NameAttrList`s."""
    values = [value for value in node.attr.values() if value.WhichOneof("value") == "func"]
    lists = [value for value in node.attr.values() if value.WhichOneof("value") == "list"]
    return [*(one.func for one in values), *(one for each in lists for one in each.list.func)]


def _called(nodes: Any) -> set[str]:
    return {name for node in nodes for name in called_names(node)}
