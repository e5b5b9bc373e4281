"""Says what to do when XLA can't compile a training step, with the user's source lines.

Host code, at trace time.
"""

from typing import Any, TypeVar

import tensorflow as tf

from tfloss import _upstream
from tfloss.errors import ModelError
from tfloss.inspect.source_lines import op_line
from tfloss.inspect.traced_ops import operations

NOT_IN_XLA = (tf.string, tf.variant)
E = TypeVar("E", bound=tf.errors.OpError)


def uncompilable_ops(graph: Any) -> list[str]:
    """Lists the ops of a traced function that XLA has no kernel for. Host code, at trace time.

    Ops in branches, loops and nested functions are included, and so are ops whose results nobody
    uses, although XLA removes those.

    Args:
      graph: `tf.Graph` of the function.

    Returns:
      `Op (file.py:12, in call)` for each type of op and source line.
    """
    missing = _upstream.ops_without_xla_kernel(op for op, _ in operations(graph))
    return list(dict.fromkeys(f"{op.type} ({op_line(op)})" for op in missing))


def refuse_strings(graph: Any, ops: Any = None) -> None:
    """Refuses strings and variants that enter a function which XLA compiles.

    XLA has no such types. It mostly says so in terms of its own, and in some cases it aborts the
    process. Strings that are constants inside of the function may be compiled away.

    Args:
      graph: `tf.Graph` of the function, whose tracing is about to end.
      ops: The graph that has the source lines of its ops. None: the same.

    Raises:
      ModelError: There are such inputs. The message has the lines that use them.
    """
    found = [one for one in _upstream.function_inputs(graph) if one.dtype in NOT_IN_XLA]
    if not found:
        return
    kinds = sorted({one.dtype.name for one in found})
    # What calls a function, such as a loop, only passes them on.
    users = [
        op
        for op, _ in operations(graph if ops is None else ops)
        if any(one.dtype.name in kinds for one in op.inputs)
        and not op.type.endswith(("While", "If", "Case", "Call"))
    ]
    lines = list(dict.fromkeys(op_line(user) for user in users))
    where = f"at {', '.join(lines)}" if lines else "in its batch"
    raise ModelError(
        f"XLA has no tensors of type {' or '.join(kinds)}, but they enter the compiled step "
        f"{where}. Turn them into numbers in the input pipeline, or train with jit=False."
    )


def add_xla_advice(error: E, graphs: list[Any]) -> E:
    """Says in the error of a compiled step which ops are at fault and what to do. Host code.

    If ops without a kernel are found, this replaces the message, which is a dump of the program.
    Otherwise it adds a note.

    Args:
      error: Error raised while a step was compiled or run.
      graphs: `tf.Graph`s of the compiled functions that have been traced.

    Returns:
      The same error.
    """
    ops = list(dict.fromkeys(op for graph in graphs for op in uncompilable_ops(graph)))
    if ops:
        _upstream.replace_message(
            error,
            f"XLA can't compile the training step: it has no kernel for {', '.join(ops)}. Move "
            "these ops to the input pipeline, or train with jit=False.",
        )
    else:
        error.add_note(
            "The step was compiled with XLA. If the message is about compilation (most likely a "
            "shape that is not static), train with jit=False."
        )
    return error
