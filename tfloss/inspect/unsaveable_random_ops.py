"""Finds random ops of a traced step whose state no checkpoint can hold.

    check = UnsaveableOpCheck(deterministic=False, saved=lambda: variables)
    check(graph)            # warns once: the op, the user's line, what to use instead

Most of TensorFlow's random ops keep their state in the kernel, where nothing can read it. The
stateless ones take it as an argument. A `keras.random.SeedGenerator` and a `tf.random.Generator`
keep it in a variable, which is fine if a checkpoint has that variable. Host code, at trace time.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.errors import ModelError
from tfloss.inspect.source_lines import op_line
from tfloss.inspect.traced_ops import operations

_STATELESS = {
    "Multinomial": "tf.random.stateless_categorical",
    "ParameterizedTruncatedNormal": "tf.random.stateless_parameterized_truncated_normal",
    "RandomGamma": "tf.random.stateless_gamma",
    "RandomPoisson": "tf.random.stateless_poisson",
    "RandomPoissonV2": "tf.random.stateless_poisson",
    "RandomShuffle": "tf.random.experimental.stateless_shuffle",
    "RandomStandardNormal": "tf.random.stateless_normal",
    "RandomUniform": "tf.random.stateless_uniform",
    "RandomUniformInt": "tf.random.stateless_uniform",
    "SampleDistortedBoundingBoxV2": "tf.image.stateless_sample_distorted_bounding_box",
    "TruncatedNormal": "tf.random.stateless_truncated_normal",
}


@dataclasses.dataclass(frozen=True)
class UnsaveableOp:
    """An op of a traced function that changes state which no checkpoint holds.

    Attributes:
      op: Type of the op, such as "RandomUniform".
      line: Line of the user's source, such as `file.py:12, in call`.
      remedy: What to use instead.
    """

    op: str
    line: str
    remedy: str

    def __str__(self) -> str:
        """Returns the op, its line and the remedy."""
        return f"{self.op} ({self.line}): {self.remedy}"


def find_unsaveable_ops(graph: tf.Graph, saved: Iterable[Any] | None = None) -> list[UnsaveableOp]:
    """Finds the ops of a traced function that change state which no checkpoint holds.

    Functions that it calls are included: loops, branches, nested and compiled `tf.function`s. Host
    code, at trace time.

    Args:
      graph: Graph of the function. Tracing need not be finished.
      saved: Variables of Keras or TensorFlow, and tables, that a checkpoint holds. An op that
        changes the state of another generator, any other variable or table, a queue or an iterator
        is included. If None, these ops are not looked at.

    Returns:
      The ops, each source line once.
    """
    handles = {id(getattr(one, "handle", None)) for one in _local_variables(saved or ())}
    found: dict[tuple[str, str], UnsaveableOp] = {}
    for op, known in operations(graph):
        state = _upstream.op_state(op)
        if state in ("generator", "variable", "table"):
            handle = known.get(op.inputs[0].name)
            if saved is None or handle is None or handle in handles:  # None: made in the function
                continue
        elif state == "resource":
            if saved is None or not _upstream.captured_resource(op, known):
                continue
        elif state not in ("kernel", "python"):
            continue
        unsaveable = UnsaveableOp(op.type, op_line(op), _remedy(op, state))
        found.setdefault((unsaveable.op, unsaveable.line), unsaveable)
    return list(found.values())


def _local_variables(variables: Iterable[Any]) -> Iterator[Any]:
    """Yields the `tf.Variable`s behind variables; of a mirrored one, each replica's."""
    for variable in variables:
        value = variable.value if isinstance(variable, keras.Variable) else variable
        yield from getattr(value, "values", (value,))


def _remedy(op: tf.Operation, state: str) -> str:
    if state == "generator":
        return "make the tf.random.Generator an attribute of a layer of the model"
    if state == "variable":
        return (
            "it changes a variable that is not part of the model. Pass keras.random a "
            "seed=SeedGenerator that is an attribute of a layer; create other variables with "
            "add_weight"
        )
    if state == "table":
        return "make the table an attribute of a layer of the model"
    if state == "resource":
        return (
            "no checkpoint can hold what it changes. Keep it in a variable or in a "
            "tf.lookup.experimental.MutableHashTable of a layer, or read it in the data set"
        )
    if state == "python":
        return (
            "no checkpoint can hold what the Python function changes. Keep it in a variable of a "
            "layer; or, if it changes nothing, say so: tf.numpy_function(..., stateful=False)"
        )
    if _upstream.made_by_dropout(op):
        return "use keras.layers.Dropout"
    stateless = _STATELESS.get(op.type)
    ops = f"{stateless} with a seed from tfloss.current_step()" if stateless else "stateless ops"
    return f"use keras.random with a SeedGenerator of the layer, or {ops}"


class UnsaveableOpCheck:
    """Checks each trace of a step for unsaveable ops and reports each source line once."""

    def __init__(
        self, deterministic: bool = False, saved: Callable[[], Iterable[Any]] | None = None
    ):
        """Creates a check that has reported nothing yet.

        Args:
          deterministic: Whether an unsaveable op is an error.
          saved: Function that returns the variables a checkpoint holds. If None, ops that change
            variables are not looked at.
        """
        self._deterministic, self._saved = deterministic, saved
        self._reported: set[UnsaveableOp] = set()

    def __call__(self, graph: tf.Graph) -> None:
        """Warns of unsaveable ops that were not reported before. Host code, at trace time.

        Args:
          graph: Graph of the step.

        Raises:
          ModelError: There is such an op and the check is deterministic.
        """
        found = find_unsaveable_ops(graph, None if self._saved is None else self._saved())
        new = [op for op in found if op not in self._reported]
        lines = "".join(f"\n  {op}" for op in new)
        if new and self._deterministic:
            raise ModelError(
                f"deterministic=True, but the training step uses state that checkpoints can't "
                f"store, at:{lines}"
            )
        self._reported.update(new)
        if new:
            warnings.warn(
                "Resuming will not be bit-exact: the training step uses state that checkpoints "
                f"can't store, at:{lines}",
                stacklevel=2,
            )
