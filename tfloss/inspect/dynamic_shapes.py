"""Finds the ops that make shapes depend on values, which TPUs and static XLA programs refuse.

Host code, at trace time.
"""

from typing import Any

import tensorflow as tf

from tfloss import _upstream
from tfloss.inspect.source_lines import op_line
from tfloss.inspect.traced_ops import operations


def dynamic_shapes(graph: Any) -> list[tuple[str, str]]:
    """Lists the ops with a result of unknown shape, though all shapes that go in are known.

    Trace the function with static shapes. What follows from such an op is not listed.

    Args:
      graph: `tf.Graph` of the function. Tracing need not be finished.

    Returns:
      The type of each op, and its line: `("Where", "file.py:12, in call")`.
    """
    found = [
        (op.type, op_line(op))
        for op, _ in operations(graph)
        if op.type not in ("Placeholder", "PlaceholderWithDefault")
        and any(not _known(one) for one in op.outputs)
        and all(_known(one) for one in op.inputs)
        and not _upstream.called_functions(op)
    ]
    return list(dict.fromkeys(found))


def _known(tensor: tf.Tensor) -> bool:
    return tensor.dtype in (tf.resource, tf.variant) or tensor.shape.is_fully_defined()
