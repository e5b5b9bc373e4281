"""Walks the ops of a traced function, including those of the functions that it calls.

for op, known in operations(graph):
    print(op.type, op_line(op))
"""

from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfloss import _upstream


def operations(
    graph: Any,
    known: dict[str, int] | None = None,
    seen: set[tuple[Any, ...]] | None = None,
) -> Iterator[tuple[tf.Operation, dict[str, int]]]:
    """Walks all ops, including those in loops, branches, nested and compiled `tf.function`s.

    Host code, at trace time.

    Args:
      graph: `tf.Graph` of the function. Tracing need not be finished.
      known: For the recursion: resources known in the calling function.
      seen: For the recursion: functions that were walked already.

    Yields:
      op: The op.
      known: `{tensor name: id(handle)}`, the resource that each captured tensor of the op's own
        graph stands for, by the handle of the variable.
    """
    known = _upstream.captured_handles(graph) if known is None else known
    seen = set() if seen is None else seen
    for op in graph.get_operations():
        yield op, known
        for name in _upstream.called_functions(op):
            inner = _upstream.called_graph(op, name)
            if inner is None:
                continue
            # The first inputs of a branch select it and are not passed to the function.
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
