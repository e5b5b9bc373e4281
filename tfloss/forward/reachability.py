"""Finds what a gradient can reach from a tensor of a traced graph. Replica code, traced."""

from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tfloss import _upstream

_NO_GRADIENT = {"StopGradient", "PreventGradient", "Round", "Rint", "Floor", "Ceil", "Sign"}


def gradient_reaches(variables: Iterable[Any]) -> Callable[[tf.Tensor], bool]:
    """Returns a function that tells whether a tensor's gradient can reach one of the variables.

    Call this outside of `Model.call`; inside, Keras autocasting replaces variables by tensors.
    Runs traced, in replica code.

    Args:
      variables: Variables of Keras or TensorFlow.

    Returns:
      Function of a tensor of the current graph.
    """
    values = [v.value if isinstance(v, keras.Variable) else v for v in variables]
    handles = {_upstream.captured_here(value.handle).name for value in values}
    return lambda tensor: any(True for _ in reached_tensors(tensor, handles))


def reached_tensors(tensor: tf.Tensor, targets: Container[str]) -> Iterator[str]:
    """Walks from a tensor back through floating-point tensors that a gradient can pass.

    Args:
      tensor: Tensor of a traced graph.
      targets: Names of tensors of the same graph.

    Yields:
      The name of each target that is reached. The walk does not go beyond it.
    """
    seen: set[str] = set()
    todo: list[Any] = [tensor]
    while todo:
        one = todo.pop()
        if one.name in seen:
            continue
        seen.add(one.name)
        if one.name in targets:
            yield one.name
            continue
        if one.op.name in seen or one.op.type in _NO_GRADIENT:
            continue
        seen.add(one.op.name)
        todo += [
            x
            for x in one.op.inputs
            if x.dtype.is_floating or x.dtype.is_complex or x.dtype in (tf.resource, tf.variant)
        ]


def depends_on(tensor: tf.Tensor, source: tf.Tensor) -> bool:
    """Returns whether a tensor depends on another one, on a variable or on something stateful.

    Args:
      tensor: Tensor of a traced graph.
      source: Tensor of the same graph.
    """
    seen: set[str] = set()
    todo: list[Any] = [tensor]
    while todo:
        one = todo.pop()
        if one.name == source.name or one.dtype == tf.resource or one.op.op_def.is_stateful:
            return True
        if one.op.name not in seen:
            seen.add(one.op.name)
            todo += list(one.op.inputs)
    return False
