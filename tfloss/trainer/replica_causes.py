"""Why a loss may change with the number of replicas: what the traced graph shows. Trace time."""

import dataclasses
from collections.abc import Collection, Iterator
from typing import Any

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.forward import global_batch
from tfloss.forward.batch_sums import batch_sums
from tfloss.inspect.report import NOT_IN_CODE
from tfloss.inspect.source_lines import op_line
from tfloss.step.observation import Observation
from tfloss.trainer.inference_layers import variables_used

# The index of the divisor among the inputs of an op.
_DIVISIONS = {"RealDiv": 1, "Div": 1, "DivNoNan": 1, "Reciprocal": 0, "Inv": 0, "Pow": 0}
_SIZES = ("Shape", "Size", "Rank")
_PRODUCTS = ("MatMul", "BatchMatMulV2", "Einsum")
_REDUCTIONS = ("Mean", "Sum", "Max", "Min", "Prod")


@dataclasses.dataclass(frozen=True)
class Cause:
    """A likely cause.

    Attributes:
      line: The line of the user's source.
      text: What it is, and the cure.
    """

    line: str
    text: str

    @property
    def is_unknown(self) -> bool:
        """Whether nothing but a guess is known."""
        return self.text.startswith("It depends on")

    @staticmethod
    def unknown(line: str = NOT_IN_CODE) -> "Cause":
        """Nothing was found in the graph."""
        return Cause(
            line,
            "It depends on which examples a replica has together. Take sums and means over the "
            "global batch: tfloss.global_mean, tfloss.global_sum, tfloss.cross_replica_concat.",
        )

    @staticmethod
    def sum(line: str = NOT_IN_CODE) -> "Cause":
        """The loss is a sum."""
        return Cause(
            line,
            "Likely a sum over the examples of one replica: training takes the mean over replicas. "
            "Write tfloss.global_sum(x), or tf.reduce_mean(x) for the mean over examples.",
        )


def likely_causes(
    loss: tf.Tensor, seen: Observation, model: keras.Model, outside: Collection[str]
) -> list[Cause]:
    """Finds what may make a loss depend on the number of replicas. Replica code, traced.

    Args:
      loss: The loss.
      seen: The pass that computed it.
      model: The model.
      outside: Lines that were running when the trace began.

    Returns:
      The causes. If there are none, one that says so, with the line of the loss.
    """
    batch = tf.nest.flatten(seen.batch, expand_composites=True)
    inputs = {x.name: x for x in batch if tf.is_tensor(x)}
    rows = next((x.shape[0] for x in inputs.values() if x.shape.rank), None)
    sums = batch_sums({"": loss}, seen.batch, rows, seen.context.example_weight)
    ops = _ancestors(loss)
    found: list[Cause] = []
    for op in ops:
        line = op_line(op)
        if line in outside or _in_global_batch(op):
            continue
        if _divides_by_count(op, inputs) or _is_mean_of_chosen_rows(op):
            text = "Likely a mean over a number that differs between replicas, as of a mask. Write "
            found.append(Cause(line, f"{text}tfloss.global_mean(values, mask)."))
        elif rows and rows > 1 and op.type in _PRODUCTS and _is_pairwise(op, rows):
            text = (
                "Likely it compares an example with the others of its replica only. Compare with "
            )
            found.append(Cause(line, f"{text}tfloss.cross_replica_concat(x)."))
    if sums and not found:  # weights that are divided by their own sum make a mean of a sum
        return [Cause.sum(one.line) for one in sums]
    found += _normalisations(loss, ops, model)
    if not found:
        found = [Cause.unknown(_first_line(ops, outside))]
    return list(dict.fromkeys(found))


def _ancestors(loss: tf.Tensor) -> list[tf.Operation]:
    """The ops that a loss is computed by, its own first."""
    found: dict[str, Any] = {}
    todo: list[Any] = [loss.op]
    while todo:
        op = todo.pop(0)
        if op.name not in found:
            found[op.name] = op
            todo += [x.op for x in op.inputs]
    return list(found.values())


def _divides_by_count(op: tf.Operation, inputs: Collection[str]) -> bool:
    index = _DIVISIONS.get(op.type)
    if op.type == "Pow":
        exponent = tf.get_static_value(op.inputs[1])
        index = index if exponent is not None and (exponent < 0).all() else None
    return index is not None and _is_count(op.inputs[index], inputs)


def _is_mean_of_chosen_rows(op: tf.Operation) -> bool:
    """Whether an op is a mean over rows that a mask chose, as `tf.boolean_mask` does."""
    if op.type != "Mean":
        return False
    todo, seen = [op.inputs[0]], set[str]()
    while todo:
        one = todo.pop()
        if one.shape.rank and one.shape[0] is None and one.op.name not in seen:
            seen.add(one.op.name)
            if one.op.type == "Where":
                return True
            todo += list(one.op.inputs)
    return False


def _is_count(divisor: tf.Tensor, inputs: Collection[str]) -> bool:
    """Whether a divisor is one number that depends on values of the batch."""
    if divisor.shape.num_elements() != 1:
        return False
    seen: set[str] = set()
    todo: list[Any] = [divisor]
    summed = False
    while todo:
        one = todo.pop()
        if one.name in inputs:
            return summed
        if one.op.name not in seen and one.op.type not in _SIZES:
            seen.add(one.op.name)
            summed = summed or one.op.type in _REDUCTIONS
            todo += list(one.op.inputs)
    return False


def _is_pairwise(op: tf.Operation, rows: int) -> bool:
    shape: list[Any] = op.outputs[0].shape.as_list() if op.outputs[0].shape.rank else []
    both = all(x.shape.rank == 2 and rows in x.shape.as_list() for x in op.inputs)
    return shape == [rows, rows] and both


def _normalisations(
    loss: tf.Tensor, ops: list[tf.Operation], model: keras.Model
) -> Iterator[Cause]:
    """BatchNormalization layers that a loss depends on and that are not synchronised."""
    layers = {
        id(one.handle): path
        for path, layer in _upstream.layers_by_path(model)
        if isinstance(layer, keras.layers.BatchNormalization) and not layer.synchronized
        for variable in layer.weights
        for one in getattr(variable.value, "values", (variable.value,))
    }
    mine = {op.name for op in ops}
    lines: dict[str, str] = {}
    for handle, op in variables_used(loss.graph):
        if handle in layers and op.name in mine:
            lines.setdefault(layers[handle], op_line(op))
    for path, line in lines.items():
        yield Cause(
            line,
            f"Likely {path!r}: a BatchNormalization that is not synchronised uses the statistics "
            "of its replica's examples. Make it with synchronized=True.",
        )


def _in_global_batch(op: tf.Operation) -> bool:
    """Whether `tfloss.global_mean` made an op."""
    return any(frame.filename == global_batch.__file__ for frame in op.traceback or ())


def _first_line(ops: list[tf.Operation], outside: Collection[str]) -> str:
    lines = (op_line(op) for op in ops)
    return next((one for one in lines if one not in outside and one != NOT_IN_CODE), NOT_IN_CODE)
