"""Finds losses that are divided by a number of one replica's examples. Traced, replica code.

Training minimises the mean over replicas and micro-batches. The mean of their quotients is not the
quotient of the global batch: of a mean over unmasked values, a Dice or a Tversky loss. Only
divisions that the traced graph proves are found, on a path of sums, means and products from the
loss. `trainer.inspect` measures the others.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

from tfloss.forward.batch_sums import DIVISIONS, REDUCTIONS, SAME, SIZES, TERMS, Examples
from tfloss.inspect.source_lines import op_line

_MEANS = ("Sum", "Mean")
_PRODUCTS = ("Mul", "MulNoNan")
_CHOICES = ("Select", "SelectV2")  # the first input is the condition


@dataclasses.dataclass(frozen=True)
class LocalDivisor:
    """A loss that is divided by a number of one replica's examples.

    Attributes:
      loss: Name of the loss.
      line: Line of the user's source that divides, such as `file.py:12, in call`.
    """

    loss: str
    line: str

    def __str__(self) -> str:
        """Returns what is wrong, and what to write instead."""
        return (
            f"Loss {self.loss!r} is divided by a number that each replica and micro-batch computes "
            f"of its own examples ({self.line}). So it is not the loss of the global batch, and "
            "changes with the number of replicas. For a mean over some of the values, write "
            "tfloss.global_mean(values, mask). Compute a loss of the whole batch, such as Dice, of "
            "tfloss.cross_replica_concat(x), or give one value for each example: "
            "keras.losses.Dice(axis=(1, 2, 3)) for images."
        )


def local_divisors(
    losses: Mapping[str, tf.Tensor],
    batch: Any,
    examples: Any,
    weight: Any,
) -> list[LocalDivisor]:
    """Finds the losses that are divided by a number of one replica's examples.

    Args:
      losses: Losses by name, scalars of the current graph.
      batch: This replica's batch.
      examples: Number of examples in it, if it is an int.
      weight: Fraction of the step's examples that are in it, if it is a float.

    Returns:
      The first such division in each loss.
    """
    if tf.executing_eagerly() or (isinstance(weight, float) and weight == 1.0):
        return []
    search = Examples.of(batch, examples)
    found: list[LocalDivisor] = []
    for name, loss in losses.items():
        for op in _divisions(loss, search):
            found.append(LocalDivisor(name, op_line(op)))
            break
    return found


def _divisions(loss: tf.Tensor, examples: Examples) -> Iterator[tf.Operation]:
    """Yields the divisions in a loss by what was reduced over the examples."""
    todo: list[Any] = [loss]
    seen: set[str] = set()
    while todo:
        tensor = todo.pop()
        if tensor.name in seen or tensor.name in examples.reduced:
            continue
        seen.add(tensor.name)
        op = tensor.op
        if op.type in DIVISIONS:
            if _is_local(op.inputs[1], examples):
                yield op
            todo.append(op.inputs[0])
        elif op.type in _MEANS or op.type in SAME:
            todo.append(op.inputs[0])
        elif op.type in _PRODUCTS or op.type in TERMS:
            todo += list(op.inputs)
        elif op.type in _CHOICES:
            todo += list(op.inputs[1:])


def _is_local(divisor: tf.Tensor, examples: Examples) -> bool:
    """Whether a divisor depends on values that were reduced over this replica's examples.

    A divisor that has a value for each example, such as one of the example's own counts, doesn't.
    """
    if examples.are_rows(divisor):
        return False
    todo: list[Any] = [divisor]
    seen: set[str] = set()
    while todo:
        one = todo.pop()
        if one.name in seen or one.name in examples.reduced or one.op.type in SIZES:
            continue
        seen.add(one.name)
        if one.op.type in REDUCTIONS and examples.reduces(one.op) is not False:
            if examples.are_rows(one.op.inputs[0], flattened=True):
                return True
        todo += list(one.op.inputs)
    return False
