"""What XLA can't compile of a training step, by the user's source line. Trace time."""

from typing import Any, TypeVar

from tfloss import _upstream
from tfloss.inspect.source_lines import op_line

T = TypeVar("T", bound=Exception)


def uncompilable(graph: Any) -> list[str]:
    """`Op (file.py:12, in call)` for each op of a traced function that XLA has no kernel for.

    Ops that nothing needs are named too; XLA leaves those out. Ops inside branches and loops
    are not looked at.

    Args:
      graph: of the function, `tf.Graph`.
    """
    found = {}
    for op in _upstream.without_xla_kernel(graph.get_operations()):
        found[f"{op.type} ({op_line(op)})"] = None
    return list(found)


def with_advice(error: T, graphs: list[Any]) -> T:
    """The error of a step that XLA was to compile, with a note on what to do.

    Args:
      graphs: what was to be compiled, as far as it was traced.
    """
    ops = list(dict.fromkeys(op for graph in graphs for op in uncompilable(graph)))
    if ops:
        error.add_note(
            f"The step was compiled with XLA, which knows no {'; no '.join(ops)}. Do it in the "
            "data set, or train with jit=False."
        )
    else:
        error.add_note(
            "The step was compiled with XLA. If the message is about compilation (a shape that "
            "isn't static, most likely), train with jit=False."
        )
    return error
