"""The ops of a traced function, with those of the functions that it calls. Trace time.

for op, known in operations(graph):
    print(op.type, op_line(op))
"""

from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfloss import _upstream

_function_attributes: dict[str, list[str]] = {}  # of each type of op; asking an op makes a copy


def operations(
    graph: Any, known: dict[str, int] | None = None, seen: set[tuple] | None = None
) -> Iterator[tuple[tf.Operation, dict[str, int]]]:
    """Every op: also those in loops, branches, nested and compiled `tf.function`s.

    Args:
      graph: of the function, `tf.Graph`; it may still be being traced.
      known, seen: of the functions that call it.

    Yields:
      The op, and `{tensor name: id(handle)}`: which resource each captured tensor of the op's own
      graph stands for, by the handle of the variable.
    """
    known = _upstream.captured_handles(graph) if known is None else known
    seen = set() if seen is None else seen
    for op in graph.get_operations():
        yield op, known
        for name in _called(op):
            inner = _upstream.called_graph(op, name)
            if inner is None:
                continue
            # What a branch is chosen by comes first, and is not handed on.
            given = list(op.inputs)[-len(inner.inputs) :] if inner.inputs else []
            passed = {
                here.name: known[there.name]
                for here, there in zip(inner.inputs, given, strict=False)
                if there.dtype == tf.resource and there.name in known
            }
            key = (name, *sorted(passed.items()))
            if key not in seen:
                seen.add(key)
                yield from operations(inner, passed, seen)


def _called(op: tf.Operation) -> list[str]:
    """The names of the functions that an op calls."""
    if op.type not in _function_attributes:
        attributes = [a.name for a in op.op_def.attr if a.type in ("func", "list(func)")]
        _function_attributes[op.type] = attributes
    values = [op.get_attr(name) for name in _function_attributes[op.type]]
    return [one.name for v in values for one in (v if isinstance(v, list) else [v])]
