"""Runs traced functions without lasting changes of state. Host code around traced code.

    forward = KeptState(tf.function(model_forward))
    forward.begin()
    for batch in data:
        forward(batch)     # a stateful RNN continues from batch to batch, and is then as it was

What a function changes is found in its graph: variables, whoever owns them, and tables. So nothing
is copied for a function that changes nothing.
"""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfloss import _upstream
from tfloss.errors import ModelError
from tfloss.inspect.source_lines import op_line
from tfloss.inspect.traced_ops import operations


class KeptState:
    """Calls a function whose changes of state last from call to call, and for nobody else.

    Before each call, the state is as the last call left it. After the call it is as before.

    Args:
      function: A `tf.function`.
    """

    def __init__(self, function: Any):
        self._function = function
        self._changed: dict[int, tuple[Callable[[], Any], Callable[[Any], Any]]] = {}
        self._own: dict[int, Any] = {}
        self._traced: set[tuple[Any, ...]] = set()

    def begin(self) -> None:
        """Forgets what the last call left. The next one begins with the state as it is."""
        self._own = {}

    def __call__(self, *arguments: Any) -> Any:
        """Calls the function.

        Args:
          *arguments: Nests of tensors.

        Raises:
          ModelError: The function changes state that can't be restored, such as a queue.
        """
        if not self.changes_state(*arguments):
            return self._function(*arguments)
        before = {key: read() for key, (read, _) in self._changed.items()}
        self._assign(self._own)
        try:
            result = self._function(*arguments)
            self._own = {key: read() for key, (read, _) in self._changed.items()}
        finally:
            self._assign(before)
        return result

    def changes_state(self, *arguments: Any) -> bool:
        """Returns whether the function changes state, for these arguments or earlier ones.

        Args:
          *arguments: Nests of tensors. The function is traced for them, and doesn't run.

        Raises:
          ModelError: The function changes state that can't be restored, such as a queue.
        """
        leaves = tf.nest.flatten(arguments, expand_composites=True)
        kind = tuple((x.shape, x.dtype) if tf.is_tensor(x) else x for x in leaves)
        if kind not in self._traced:
            graph = self._function.get_concrete_function(*arguments).graph
            self._changed |= _changed_by(graph)
            self._traced.add(kind)
        return bool(self._changed)

    def _assign(self, values: dict[int, Any]) -> None:
        for key, value in values.items():
            self._changed[key][1](value)


def _changed_by(graph: Any) -> dict[int, tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """Finds what a traced function changes: `{id(handle): (read, assign)}`."""
    handles: set[int] = set()
    for op, known in operations(graph):
        state = _upstream.op_state(op)
        if state == "resource" and _upstream.captured_resource(op, known):
            raise ModelError(
                f"Evaluation would change what {op.type} ({op_line(op)}) works on, and can't "
                "restore it. Evaluation must leave the model as it is: do this in training only, "
                "or keep the state in a variable or a table of the model."
            )
        if state in ("variable", "generator", "table") and op.inputs[0].name in known:
            handles.add(known[op.inputs[0].name])
    return dict(_restorable(handles)) if handles else {}


def _restorable(
    handles: set[int],
) -> Iterator[tuple[int, tuple[Callable[[], Any], Callable[[Any], Any]]]]:
    """Yields how to read and assign the variables and tables that have these handles.

    A model may hold them, or a closure, or a module. The garbage collector knows all of them.
    """
    table: Any = tf.saved_model.experimental.TrackableResource
    for one in gc.get_objects():
        kind = type(one)
        if issubclass(kind, tf.Variable) and not issubclass(kind, tf.distribute.DistributedValues):
            if id(one.handle) in handles:
                yield id(one.handle), (one.read_value, one.assign)
        elif issubclass(kind, table) and hasattr(one, "export"):
            if id(one.resource_handle) in handles:
                yield id(one.resource_handle), _table(one)


def _table(table: Any) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    def read() -> Any:
        # A copy: what a DenseHashTable exports is the memory that it works in.
        return [np.array(part) for part in table.export()]

    def assign(content: Any) -> None:
        keys, values = content
        tf.raw_ops.LookupTableImportV2(
            table_handle=table.resource_handle,
            keys=tf.constant(keys, table.key_dtype),
            values=tf.constant(values, table.value_dtype),
        )

    return read, assign
