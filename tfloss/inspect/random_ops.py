"""Random numbers whose state no checkpoint holds, found when a step is traced.

    check = RandomnessCheck(deterministic=False, saved=lambda: variables)
    check(graph)            # warns once: the op, the user's line, what to use instead

Most of TensorFlow's random ops keep their state in the kernel, where nothing can read it. Those
with `stateless` in their name take it as an argument; a `keras.random.SeedGenerator` and a
`tf.random.Generator` keep it in a variable, which is fine if a checkpoint has that variable. Host
code, at trace time.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf

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
_CHANGES = ("Assign", "ResourceScatter", "ResourceApply", "ResourceSparseApply")

_states: dict[str, str] = {}  # of each type of op; asking an op for its definition makes a copy


@dataclasses.dataclass(frozen=True)
class StatefulOp:
    """An op of a traced function whose state no checkpoint holds.

    Attributes:
      op: its type, "RandomUniform".
      line: of the user's source, `file.py:12, in call`.
      remedy: what to use instead.
    """

    op: str
    line: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.op} ({self.line}): {self.remedy}"


def state_of(op: tf.Operation) -> str:
    """Where an op has state that it changes.

    "kernel" for a random op that keeps it to itself, "generator" for one that has it in the
    variable of a `tf.random.Generator`, "variable" if it assigns to one, else "".
    """
    if op.type not in _states:
        _states[op.type] = state_by_definition(op.op_def)
    state = _states[op.type]
    if state == "kernel" and op.type.startswith("CudnnRNN") and not op.get_attr("dropout"):
        return ""
    return state


def state_by_definition(definition: Any) -> str:
    """The same from an `OpDef`, for all ops of its type."""
    if not definition.is_stateful:
        return ""
    if {"seed", "seed2"} <= {one.name for one in definition.attr}:
        return "kernel"
    takes = [one.type for one in definition.input_arg][:1] == [tf.resource.as_datatype_enum]
    if takes and definition.name.startswith(("Rng", "Stateful")):
        return "generator"
    return "variable" if takes and definition.name.startswith(_CHANGES) else ""


def stateful_random_ops(graph: tf.Graph, saved: Iterable[Any] | None = None) -> list[StatefulOp]:
    """What a traced function draws or changes that no checkpoint holds, each source line once.

    The functions that it calls are looked at too: loops, branches, nested and compiled
    `tf.function`s.

    Args:
      graph: of the function; it may still be being traced.
      saved: the variables that a checkpoint holds, Keras's and TensorFlow's. A generator whose
        state is another one is listed, and so is any other variable that the function changes.
        None: variables are not looked at.
    """
    handles = {id(one.handle) for one in _parts(saved or ())}
    found: dict[tuple[str, str], StatefulOp] = {}
    for op, known in operations(graph):
        state = state_of(op)
        if state in ("generator", "variable") and saved is not None:
            handle = known.get(op.inputs[0].name)
            if handle is None or handle in handles:  # None: it was made in the function
                continue
        elif state != "kernel":
            continue
        one = StatefulOp(op.type, op_line(op), _remedy(op, state))
        found.setdefault((one.op, one.line), one)
    return list(found.values())


def _parts(variables: Iterable[Any]) -> Iterator[Any]:
    """The `tf.Variable`s behind variables: of a mirrored one, each replica's."""
    for one in variables:
        value = one.value if isinstance(one, keras.Variable) else one
        yield from getattr(value, "values", (value,))


def _remedy(op: tf.Operation, state: str) -> str:
    if state == "generator":
        return "make the tf.random.Generator an attribute of a layer of the model"
    if state == "variable":
        return (
            "it changes a variable outside of the model. Give keras.random a seed=SeedGenerator "
            "that is an attribute of a layer; make other variables with add_weight"
        )
    if "dropout" in op.name:
        return "use keras.layers.Dropout"
    stateless = _STATELESS.get(op.type)
    drawn = f"{stateless} with a seed from tfloss.current_step()" if stateless else "stateless ops"
    return f"use keras.random with a SeedGenerator of the layer, or {drawn}"


class RandomnessCheck:
    """Looks at each trace of a step; tells once of each line.

    Args:
      deterministic: what is found is an error.
      saved: gives the variables that a checkpoint holds. None: variables are not looked at.
    """

    def __init__(
        self, deterministic: bool = False, saved: Callable[[], Iterable[Any]] | None = None
    ):
        self._deterministic, self._saved = deterministic, saved
        self._told: set[StatefulOp] = set()

    def __call__(self, graph: tf.Graph) -> None:
        """Warns of what is new. Raises ModelError instead where all is to be deterministic."""
        found = stateful_random_ops(graph, None if self._saved is None else self._saved())
        new = [one for one in found if one not in self._told]
        lines = "".join(f"\n  {one}" for one in new)
        if new and self._deterministic:
            raise ModelError(
                f"deterministic=True, but no checkpoint can hold the state of what the step "
                f"does here:{lines}"
            )
        self._told.update(new)
        if new:
            warnings.warn(
                "A resumed run will not go on exactly: no checkpoint can hold the state of what "
                f"the step does here:{lines}",
                stacklevel=2,
            )


def make_deterministic(seed: int | None) -> None:
    """Turns on TensorFlow's op determinism, for the whole process and for good. Host code.

    Call it before data sets and models are made. Data sets then ignore `deterministic=False`, and
    run functions with stateful ops one at a time. Some ops have no deterministic kernel on a GPU
    and raise `tf.errors.UnimplementedError`.

    Raises ValueError without a seed, which TensorFlow's random ops then need.
    """
    if seed is None:
        raise ValueError("deterministic=True needs a seed: give seed=0, say, too.")
    tf.config.experimental.enable_op_determinism()


def explain(error: tf.errors.OpError) -> None:
    """Adds to the error of an op without a deterministic kernel what to do."""
    if "determinis" in error.message.lower():
        error.add_note(
            "tfloss: with deterministic=True an op without a deterministic kernel for this device "
            "is refused. Use another op, place it on the CPU, or train without deterministic=True."
        )
