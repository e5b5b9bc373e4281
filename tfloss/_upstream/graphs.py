"""What TensorFlow doesn't document of graphs and data sets; see `tfloss._upstream`."""

from typing import Any

import tensorflow as tf
import tensorflow.python.framework.kernels as registry  # what a kernel is registered for


def next_in_this_thread(iterator: Any) -> Any:
    """Traced: the next element of a `tf.data` iterator, known to have one.

    In a function, `next(iterator)` hands over to another thread and back, for each element; what
    eager code runs doesn't. The op is public; the handle that it needs is not.
    """
    spec = iterator.element_spec
    flat = tf.nest.flatten(spec)
    values = tf.raw_ops.IteratorGetNextSync(
        iterator=iterator._iterator_resource,
        output_types=[one.dtype for one in flat],
        output_shapes=[one.shape for one in flat],
    )
    return tf.nest.pack_sequence_as(spec, values)


def without_xla_kernel(operations: list[tf.Operation]) -> list[tf.Operation]:
    """Those of the operations that XLA can't compile on this machine's kind of device.

    TensorFlow's own error names one of them. Which kernels there are is not public; XLA's are
    registered when something is compiled for the first time.
    """
    tf.function(lambda: tf.constant(0), jit_compile=True, autograph=False)()
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"

    def compiles(name: str) -> bool:
        kernels = registry.get_registered_kernels_for_op(name).kernel
        return any(one.device_type == f"XLA_{kind}_JIT" for one in kernels)

    types = {op.type for op in operations} - {"Placeholder"}  # an argument of the function
    missing = {name for name in types if not compiles(name)}
    return [op for op in operations if op.type in missing]


def captured_handles(graph: Any) -> dict[str, int]:
    """`{tensor name: id(handle)}` of the resources that a traced function has captured.

    A function nested in it may have captured them first. `FuncGraph.captures` is the only way from
    a placeholder to the variable's handle.
    """
    outer: dict[str, int] | None = None
    found = {}
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


def called_graph(op: tf.Operation, name: str) -> Any:
    """The graph of the function that an op calls by this name, as it was traced; None if unknown.

    A `tf.Graph` gives its functions only as protos, which have lost the source lines.
    """
    try:
        return op.graph._get_function(name).graph
    except (AttributeError, KeyError):
        return None


def datasets_below(dataset: tf.data.Dataset) -> list[Any]:
    """A data set and all those that it is made of. Nothing public tells."""
    found: dict[int, Any] = {}
    todo = [dataset]
    while todo:
        one = todo.pop()
        if id(one) not in found:
            found[id(one)] = one
            todo += one._inputs()
    return list(found.values())


def dataset_graphs(dataset: Any) -> list[Any]:
    """The traced functions that this one data set calls (of `map`, `filter`, ...)."""
    return [one.function.graph for one in dataset._functions()]


def dataset_seeds(dataset: Any) -> tuple[int, int] | None:
    """Both seeds of a data set that draws random numbers. (0, 0): another one in each process."""
    if not hasattr(dataset, "_seed2"):
        return None
    return int(dataset._seed), int(dataset._seed2)


def dataset_order(dataset: Any) -> str:
    """What a parallel data set was given as `deterministic`: "true", "false" or "default"."""
    return str(getattr(dataset, "_deterministic", "default"))
