"""Finds losses that are a sum over the examples of one replica. Traced, replica code.

Training minimises the mean over replicas and micro-batches, weighted by examples. A loss that is a
sum over examples is therefore divided by their number, unless `tfloss.global_sum` computed it. Only
sums that the traced graph proves are found: a value that is divided by anything computed, or that
comes out of a nested function, may be a mean.
"""

import dataclasses
import itertools
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfloss.forward.reduced_tensors import reduced_names
from tfloss.inspect.source_lines import op_line

SAME = frozenset("Identity Cast Reshape Squeeze ExpandDims EnsureShape Neg".split())
TERMS = frozenset("Add AddV2 AddN Sub Pack".split())
REDUCTIONS = frozenset("Sum Mean Max Min Prod".split())
DIVISIONS = frozenset("RealDiv Div DivNoNan".split())
SIZES = frozenset("Shape Size Rank Unique UniqueV2 UniqueWithCounts Bincount".split())


@dataclasses.dataclass(frozen=True)
class BatchSum:
    """A loss that is a sum over the examples of one replica.

    Attributes:
      loss: Name of the loss.
      line: Line of the user's source that sums, such as `file.py:12, in call`.
      by_global_size: Whether the sum is divided by the number of examples of the global batch.
    """

    loss: str
    line: str
    by_global_size: bool

    @property
    def cure(self) -> str:
        """What to write instead."""
        if self.by_global_size:
            return (
                "Training takes the mean over replicas and micro-batches too, so it is divided "
                "twice by their number. Write tf.reduce_mean(x), or tfloss.global_mean(x)."
            )
        return (
            "Training takes the mean over replicas and micro-batches, so this sum is divided by "
            "their number. Write tfloss.global_sum(x) for the sum over the global batch, or "
            "tf.reduce_mean(x) for the mean over its examples."
        )

    def __str__(self) -> str:
        """Returns what is wrong, and what to write instead."""
        divided = ", divided by the size of the global batch" if self.by_global_size else ""
        what = f"Loss {self.loss!r} is a sum over the examples of one replica{divided}"
        return f"{what} ({self.line}). {self.cure}"


def batch_sums(
    losses: Mapping[str, tf.Tensor],
    batch: Any,
    examples: Any,
    weight: Any,
) -> list[BatchSum]:
    """Finds the losses that are a sum over the examples of one replica.

    Args:
      losses: Losses by name, scalars of the current graph.
      batch: This replica's batch.
      examples: Number of examples in it, if it is an int.
      weight: Fraction of the step's examples that are in it, if it is a float.

    Returns:
      The first sum in each loss.
    """
    if tf.executing_eagerly() or (isinstance(weight, float) and weight == 1.0):
        return []
    parts = 1 / weight if isinstance(weight, float) else 0.0
    search = _Search(Examples.of(batch, examples), parts)
    found: list[BatchSum] = []
    for name, loss in losses.items():
        for op, by_global_size in search.sums(loss):
            found.append(BatchSum(name, op_line(op), by_global_size))
            break
    return found


@dataclasses.dataclass(frozen=True)
class Examples:
    """Tells which tensors of a graph have a row for each example of one replica.

    Attributes:
      inputs: Names of the tensors of the batch.
      number: Number of examples on this replica, or None if it is not static.
      reduced: Names of the tensors that were computed of the global batch.
    """

    inputs: Collection[str]
    number: int | None
    reduced: Collection[str]

    @staticmethod
    def of(batch: Any, number: Any) -> "Examples":
        """Describes the examples of a batch.

        Args:
          batch: This replica's batch.
          number: Number of examples in it, if it is an int.
        """
        tensors = tf.nest.flatten(batch, expand_composites=True)
        names = {x.name for x in tensors if tf.is_tensor(x)}
        return Examples(names, number if isinstance(number, int) else None, reduced_names())

    def reduces(self, op: tf.Operation) -> bool | None:
        """Whether a reduction is over the first dimension; None if that is unknown."""
        axes, rank = tf.get_static_value(op.inputs[1]), op.inputs[0].shape.rank
        if axes is None or not rank:
            return None
        return 0 in {int(axis) % rank for axis in np.ravel(axes)}

    def are_rows(self, tensor: tf.Tensor, flattened: bool = False) -> bool:
        """Whether the first dimension of a tensor is that of the examples, as far as it is known.

        It must have the size of the batch, and depend on the batch in other ways than by what was
        reduced over the examples before, or by its shape.

        Args:
          tensor: The tensor.
          flattened: Whether the first dimension may contain others, too.
        """
        if not tensor.shape.rank or not self._has_batch_size(tensor, flattened):
            return False
        seen: set[str] = set()
        todo: list[Any] = [tensor]
        while todo:
            one = todo.pop()
            if one.name in self.inputs:
                if one.shape.rank and self._has_batch_size(one):
                    return True
                continue
            if one.op.name in seen or one.op.type in SIZES or one.name in self.reduced:
                continue
            seen.add(one.op.name)
            if one.op.type in REDUCTIONS and self.reduces(one.op) is not False:
                continue
            todo += list(one.op.inputs)
        return False

    def _has_batch_size(self, tensor: tf.Tensor, flattened: bool = False) -> bool:
        size: Any = tensor.shape[0]  # None is a number that depends on data
        if size is None or self.number is None:
            return size is None
        return size != 1 and (size == self.number or (flattened and size % self.number == 0))


@dataclasses.dataclass(frozen=True)
class _Search:
    """The search for sums in one graph.

    Attributes:
      rows: What has a row for each example.
      parts: Number of replicas and micro-batches, or 0 if they differ in size.
    """

    rows: Examples
    parts: float

    def sums(self, loss: tf.Tensor) -> Iterator[tuple[tf.Operation, bool]]:
        """Yields the sums over examples in a loss, and whether the global size divides them."""
        # A tensor, what it is multiplied by, and what constants divide it by.
        todo: list[tuple[Any, float, float]] = [(loss, 1.0, 1.0)]
        seen: set[tuple[str, float, float]] = set()
        while todo:
            key = (todo[-1][0].name, *todo[-1][1:])
            tensor, factor, divisor = todo.pop()
            op = tensor.op
            if key in seen or tensor.name in self.rows.reduced:
                continue
            seen.add(key)
            if op.type in SAME:
                todo.append((op.inputs[0], factor, divisor))
            elif op.type in TERMS:
                todo += [(x, factor, divisor) for x in op.inputs]
            elif op.type == "L2Loss" and self.rows.are_rows(op.inputs[0]):
                yield from self._judged(op, factor * 0.5, divisor)
            elif op.type in ("Sum", "Mean"):
                over = self.rows.reduces(op)
                if over is False or not self.rows.are_rows(op.inputs[0]):
                    todo.append((op.inputs[0], factor, divisor))
                elif over and op.type == "Sum":
                    yield from self._judged(op, factor, divisor)
            elif op.type == "Mul":
                for x, other in ((0, 1), (1, 0)):
                    if (value := _constant(op.inputs[other])) is not None:
                        todo.append((op.inputs[x], factor * value, divisor))
                        break
            elif op.type in DIVISIONS:
                if (value := self._divisor(op.inputs[1])) is not None:
                    todo.append((op.inputs[0], factor, divisor * value))

    def _judged(
        self, op: tf.Operation, factor: float, divisor: float
    ) -> Iterator[tuple[tf.Operation, bool]]:
        """Yields a sum unless its factor and divisor may make it a mean."""
        if math.isinf(divisor):
            yield op, True
        elif self.rows.number is None:
            if divisor == 1.0:  # others may be the number of examples
                yield op, False
        else:
            # A mean may also be over other dimensions of what is summed.
            others = [d for d in op.inputs[0].shape[1:] if d]
            means = {
                self.rows.number * math.prod(some)
                for count in range(len(others) + 1)
                for some in itertools.combinations(others, count)
            }
            number = abs(divisor if divisor != 1.0 else 1 / factor)
            if divisor != 1.0 and number in {self.parts * mean for mean in means}:
                yield op, True
            elif number not in means and (divisor == 1.0 or number % self.rows.number):
                yield op, False

    def _divisor(self, tensor: tf.Tensor) -> float | None:
        """The number that a tensor divides by, if it is a constant or a number of examples.

        Infinity is the size of the global batch, where it is not static. None is any other number.
        """
        value = _constant(tensor)
        multiple = self._multiple(tensor) if value is None else None
        if multiple is None:
            return value
        if self.rows.number is not None:
            return multiple * self.rows.number
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        return math.inf if multiple > 1 and multiple in (replicas, self.parts) else None

    def _multiple(self, tensor: tf.Tensor) -> float | None:
        """What a tensor is in multiples of the number of examples, or None if that is unknown."""
        op: Any = tensor.op
        if op.type in ("Cast", "Identity"):
            return self._multiple(op.inputs[0])
        if op.type == "Mul":
            for x, other in ((0, 1), (1, 0)):
                value, multiple = _constant(op.inputs[other]), self._multiple(op.inputs[x])
                if value is not None and multiple is not None:
                    return value * multiple
        if op.type == "StridedSlice" and np.all(tf.get_static_value(op.inputs[1]) == 0):
            shape = tf.get_static_value(op.inputs[0])
            if shape is not None and self.rows.number is not None:
                return float(np.ravel(shape)[0]) / self.rows.number
            if op.inputs[0].op.type == "Shape":
                return 1.0 if self.rows.are_rows(op.inputs[0].op.inputs[0]) else None
        return None


def _constant(tensor: tf.Tensor) -> float | None:
    """The value of a constant scalar that is not 0."""
    value = tf.get_static_value(tensor)
    if value is None or np.ndim(value) or not np.issubdtype(np.asarray(value).dtype, np.number):
        return None
    return float(value) or None
