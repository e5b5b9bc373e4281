"""Calls ops of a `GraphDef` as one function, without an object of Python for each op.

    results = call_ops(graph_def, {"x:0": tensor}, ["y:0"])

The ops become a `FunctionDef`, which needs the private context to be known to the runtime, and the
registry of ops to name their results. Two public ways were measured on a step of 160 variables
(3,440 ops, 492 captures), whose first trace takes 1.9 s of CPU. `tf.graph_util.import_graph_def`,
which `wrap_function` uses too, makes an object of Python of each op: 0.39 s against 0.13 s here. A
`ConcreteFunction` that is called in a `tf.while_loop` takes 0.27 s for its captures alone, as long
as the whole loop takes here; and XLA needs changed ops anyway.

Each variable that such a function uses would be captured by all functions around the call. Those
of a `tf.while_loop` are two, and Python takes a tenth of a millisecond for each placeholder. In
`call_lifted`, they are arguments of the functions, and only the call captures them: *lambda
lifting*. `FuncGraph` and the function that traces one are not public.
"""

import itertools
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import context
from tensorflow.python.framework import func_graph, op_def_registry

from tfloss._upstream.graph_defs import functions_of

_numbers = itertools.count()


class _Lifted:
    """Tensors that functions are to get as their last arguments.

    Attributes:
      tensors: `{argument: tensor}`.
      functions: `{function: its last arguments}`.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, tf.Tensor] = {}
        self.functions: dict[str, list[str]] = {}
        self._names: dict[int, str] = {}

    def add(self, function: str, tensors: Iterable[tf.Tensor]) -> None:
        """Makes tensors the last arguments of a function."""
        self.functions[function] = [self._name(one) for one in tensors]

    def _name(self, tensor: tf.Tensor) -> str:
        name = self._names.setdefault(id(tensor), f"lifted{len(self._names)}")
        self.tensors[name] = tensor
        return name


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
    around = _graphs_around()
    lifted = next(
        (one for one in (getattr(g, "_tfloss_lifted", None) for g in around) if one), None
    )
    eager = tf.__internal__.EagerTensor
    given = dict(sorted(given.items(), key=lambda pair: isinstance(pair[1], eager)))
    function = graph_def.library.function.add()
    name = function.signature.name = f"tfloss_ops_{next(_numbers)}"
    function.signature.is_stateful = True
    function.node_def.extend(graph_def.node)
    made = {node.name: _results(node) for node in function.node_def}
    known: dict[str, tuple[str, int]] = {}
    for number, (tensor, one) in enumerate(given.items()):
        argument = function.signature.input_arg.add(name=f"x{number}")
        argument.type = one.dtype.as_datatype_enum
        known[tensor] = argument.name, argument.type

    def found(tensor: str) -> tuple[str, int]:
        node, _, number = tensor.partition(":")
        number = int(number or 0)
        return known.get(f"{node}:{number}") or made[node][number]

    for node in function.node_def:
        node.input[:] = [one if one[0] == "^" else found(one)[0] for one in node.input]
    for number, tensor in enumerate(wanted):
        result = function.signature.output_arg.add(name=f"y{number}")
        function.ret[result.name], result.type = found(tensor)
    for number, op in enumerate(op for op in sorted(always) if op in made):
        function.signature.control_output.append(f"z{number}")
        function.control_ret[f"z{number}"] = op
    _add_functions(graph_def.library)
    # A function stays in the process until it is removed.
    weakref.finalize(around[-1], _process().remove_function, name).atexit = False
    arguments = list(given.values())
    if lifted is not None:
        lifted.add(name, [one for one in arguments if isinstance(one, eager)])
        arguments = [one for one in arguments if not isinstance(one, eager)]
    types = [one.type for one in function.signature.output_arg]
    options = _process().function_call_options.config_proto_serialized  # as of all calls
    return tf.raw_ops.StatefulPartitionedCall(
        args=arguments, Tout=types, f=name, config_proto=options
    )


def call_lifted(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in the one that is being traced, which alone captures variables.

    Args:
      function: Traced code. `call_ops` in it captures nothing. What else it uses of variables, is
        captured as usual, and once more.
      *arguments: Nests of tensors.

    Returns:
      What the function returns: a nest of tensors.
    """
    outer: Any = tf.compat.v1.get_default_graph()
    specs = tf.nest.map_structure(tf.TensorSpec.from_tensor, arguments)
    graph: Any = tf.__internal__.FuncGraph("lifted")
    graph._tfloss_lifted = lifted = _Lifted()
    func_graph.func_graph_from_py_func("lifted", function, specs, {}, func_graph=graph)
    outer.tfloss_lifted_from = graph  # whose functions live as long as it
    for variable in graph.variables:
        outer.watch_variable(variable)
    leaves = tf.nest.flatten(arguments)
    given = {mine.name: its for mine, its in zip(graph.inputs, leaves, strict=False)}
    given |= {mine.name: its for its, mine in graph.captures}
    ops = graph.as_graph_def()
    nodes = [node for node in ops.node if f"{node.name}:0" not in given]
    del ops.node[:]
    ops.node.extend(nodes)
    _pass_down(ops, lifted)
    given |= {f"{name}:0": one for name, one in lifted.tensors.items()}
    always = [op.name for op in graph.control_outputs]
    results = call_ops(ops, given, [one.name for one in graph.outputs], always)
    for one, result in zip(graph.outputs, results, strict=True):
        result.set_shape(one.shape)
    return tf.nest.pack_sequence_as(graph.structured_outputs, results)


def _pass_down(ops: Any, lifted: _Lifted) -> None:
    """Gives the functions around those of `lifted` the same arguments, to be passed on."""
    functions = {one.signature.name: one for one in ops.library.function}
    known = dict(lifted.functions)
    types = {name: one.dtype.as_datatype_enum for name, one in lifted.tensors.items()}

    def needed(name: str) -> list[str]:
        if name not in known:
            known[name] = pass_on(functions[name].node_def) if name in functions else []
        return known[name]

    def pass_on(nodes: Any) -> list[str]:
        lifting = [
            list(dict.fromkeys(_all(needed(one.name) for one in functions_of(node))))
            for node in nodes
        ]
        if any(lifting):
            _put_in_order(nodes)
        for node, names in zip(nodes, lifting, strict=True):
            if not names:
                continue
            controls = [one for one in node.input if one[0] == "^"]
            node.input[:] = [*node.input[: len(node.input) - len(controls)], *names, *controls]
            loop = node.op.endswith("While")
            node.attr["T" if loop else "Tin"].list.type.extend(types[name] for name in names)
            if loop:
                shapes = [tf.TensorShape(lifted.tensors[name].shape).as_proto() for name in names]
                node.attr["output_shapes"].list.shape.extend(shapes)
            for one in functions_of(node):
                if one.name in functions:
                    body = loop and one.name == node.attr["body"].func.name
                    one.name = extend(functions[one.name], names, returns=body)
        return list(dict.fromkeys(_all(lifting)))

    def extend(function: Any, names: list[str], *, returns: bool) -> str:
        function.signature.name += "_lifted"
        for name in names:
            function.signature.input_arg.add(name=name, type=types[name])
            if returns:
                function.signature.output_arg.add(name=f"{name}_out", type=types[name])
                function.ret[f"{name}_out"] = name
        return function.signature.name

    pass_on(ops.node)


def _put_in_order(nodes: Any) -> None:
    """Makes nodes with state run in the order in which they were made.

    TensorFlow has put those in order that use one variable. It doesn't know of lifted ones.
    """
    previous = None
    for node in nodes:
        definition: Any = op_def_registry.get(node.op)
        if definition is not None and definition.is_stateful and node.op != "Placeholder":
            if previous is not None and f"^{previous}" not in node.input:
                node.input.append(f"^{previous}")
            previous = node.name


def _all(lists: Iterable[Iterable[str]]) -> Iterable[str]:
    return (one for each in lists for one in each)


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


def _graphs_around() -> list[Any]:
    """The graph that is being traced, and those of the functions around it."""
    graphs: list[Any] = [tf.compat.v1.get_default_graph()]
    while (outer := getattr(graphs[-1], "outer_graph", None)) and outer.building_function:
        graphs.append(outer)
    return graphs


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
