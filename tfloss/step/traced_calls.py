"""Nested traced functions: their static results, and compilation by XLA. Trace time.

A `tf.function` and `strategy.run` return tensors only. What else a traced function finds out
(names, shapes, its graph) is collected beside them.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import tensorflow as tf

from tfloss._upstream import xla_random
from tfloss.inspect.xla_compile_errors import refuse_strings

T = TypeVar("T")


def split_static(
    function: Callable[..., tuple[Any, T]],
) -> tuple[Callable[..., Any], list[T]]:
    """Separates the tensors that a function returns from what is known at trace time.

    Args:
      function: Returns `(tensors, static)`.

    Returns:
      A function that returns the tensors only, and a list to which each call (each trace, if
      it is called inside a `tf.function`; each replica, in `strategy.run`) appends its static
      result.
    """
    found: list[T] = []

    def tensors_only(*arguments: Any) -> Any:
        tensors, static = function(*arguments)
        found.append(static)
        return tensors

    return tensors_only, found


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function with XLA; random numbers are those of the graph mode.

    Args:
      function: Replica code; takes and returns tensors.

    Returns:
      The function. Its trace raises ModelError if strings enter it.
    """

    def traced(*arguments: Any) -> Any:
        with xla_random.as_in_a_graph():
            found = function(*arguments)
        refuse_strings(tf.compat.v1.get_default_graph())
        return found

    return tf.function(traced, jit_compile=True, autograph=False)
