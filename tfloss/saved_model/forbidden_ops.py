"""Finds ops that don't belong in an inference graph. Trace time, and on loaded SavedModels.

Ops are classified by the names of their types, in lists that `tests/_upstream` compares with all
ops of TensorFlow. There is no other public description of what an op does: `op_def.is_stateful` is
true for ops that read a variable as well as for ops that assign it. The names are a stable handle,
since they are part of the file format of SavedModels.
"""

from typing import Any

import tensorflow as tf

from tfloss import _upstream
from tfloss.errors import ExportError
from tfloss.inspect.source_lines import op_line
from tfloss.inspect.traced_ops import operations

# (types of ops, what they do, what to do instead)
_FORBIDDEN = (
    (
        _upstream.SUMMARY_OPS,
        "writes a summary",
        "Use tfloss.summary, which does nothing in inference.",
    ),
    (_upstream.COLLECTIVE_OPS, "waits for other replicas", "Use it only in training."),
    (
        _upstream.VARIABLE_WRITE_OPS | _upstream.REF_VARIABLE_WRITE_OPS | _upstream.TABLE_WRITE_OPS,
        "changes a variable, as BatchNormalization and Dropout do in training",
        "Change it only in training, and pass `training` to the layers.",
    ),
    (
        _upstream.PYTHON_OPS,
        "calls Python, which other processes can't do",
        "Write it with TensorFlow ops, or run it before the model.",
    ),
)
_RANDOM = (
    "draws random numbers",
    "Draw them only in training, or with tf.random.stateless_* from a seed that is an input.",
)
_HALF = {tf.float16, tf.bfloat16}


def check_ops(signature: str, graph: Any) -> None:
    """Checks that neither a graph nor a function that it calls has a forbidden op.

    Args:
      signature: The name of the signature, for the error message.
      graph: The `tf.Graph` of the signature, as traced here or as loaded.

    Raises:
      ExportError: There is a forbidden op. If the graph was traced here, the message has the line
        of source code.
    """
    for op, _ in operations(graph):
        if problem := _problem(op):
            effect, remedy = problem
            line = f", made at {op_line(op)}," if op.traceback else ""
            raise ExportError(
                f"Op {op.name!r} ({op.type}) in the inference forward (signature "
                f"{signature!r}){line} {effect}. {remedy}"
            )


def uses_half_precision(graph: Any) -> bool:
    """Returns whether a graph, or a function that it calls, computes with 16-bit floats.

    Args:
      graph: The `tf.Graph` of a signature.
    """
    return any(
        tensor.dtype in _HALF for op, _ in operations(graph) for tensor in (*op.inputs, *op.outputs)
    )


def _problem(op: tf.Operation) -> tuple[str, str] | None:
    """Returns what a forbidden op does and what to do instead; None for all other ops."""
    if _upstream.op_state(op) in ("kernel", "generator"):
        return _RANDOM
    for types, effect, remedy in _FORBIDDEN:
        if op.type in types:
            return effect, remedy
    return None
