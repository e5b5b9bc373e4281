"""Compiles a traced function without running it on its variables.

XLA compiles a `tf.function(jit_compile=True)` when it is called, and keeps the program by the
function and the shapes of its inputs. There is no public way to compile without a call, and none to
give a call other variables than those that were captured. `ConcreteFunction._call_flat` takes them.
"""

from collections.abc import Iterable
from typing import Any

import tensorflow as tf


def can_compile_on_copies(function: Any, variables: Iterable[tf.Variable]) -> bool:
    """Returns whether `compile_on_copies` can be used.

    Args:
      function: A concrete function.
      variables: Variables that it may use. A graph does not list those that only raw ops use.
    """
    known = _by_handle(function, variables)
    resources = [one for one in function.captured_inputs if one.dtype == tf.resource]
    return hasattr(function, "_call_flat") and all(id(one) in known for one in resources)


def compile_on_copies(function: Any, variables: Iterable[tf.Variable], *arguments: Any) -> None:
    """Calls a function with zeros in place of its variables, so that XLA compiles it. Host code.

    The next call with arguments of the same shapes finds the compiled program.

    Args:
      function: A concrete function that `can_compile_on_copies` accepts.
      variables: The same variables.
      *arguments: Nests of tensors. They should make the function compute little.
    """
    known = _by_handle(function, variables)
    copies: list[tf.Variable] = []

    def copied(captured: tf.Tensor) -> tf.Tensor:
        original = known.get(id(captured))
        if original is None:
            return captured
        with tf.device(original.device):
            zeros = tf.zeros(original.shape, original.dtype)
            copies.append(tf.Variable(zeros, trainable=False, name="copy"))
        return copies[-1].handle

    function._call_flat(
        tf.nest.flatten(arguments), [copied(one) for one in function.captured_inputs]
    )


def _by_handle(function: Any, variables: Iterable[tf.Variable]) -> dict[int, tf.Variable]:
    found = (*function.graph.variables, *variables)
    # Outside of a replica, a mirrored variable has no handle; with one replica, it has one part.
    parts = [part for one in found for part in getattr(one, "values", (one,))]
    return {id(one.handle): one for one in parts if one.shape.is_fully_defined()}
