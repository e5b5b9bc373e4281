"""Adds the batch, and what to change, to an error that a model's forward pass raises. Trace time.

    with explained_errors(batch):
        model(batch, training=True)

The error itself stays as it is: its type, its message and its traceback.
"""

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.data.batches import named_leaves
from tfloss.errors import LossError, ModelError, TflossError

_SHOWN = 8  # tensors of a batch
# Messages of Keras and TensorFlow.
_INPUTS = re.compile(r"expects \d+ (named )?input\(s\).* received \d+ input tensors")
_DTYPES = re.compile(r"that does not match type|must have the same dtype")
_RANK = re.compile(r"ndim|rank|[Ss]hape must have the same length")


@contextlib.contextmanager
def explained_errors(batch: Any) -> Iterator[None]:
    """Adds a note to errors raised inside the `with`. Replica or cross-replica code, trace time.

    Args:
      batch: What the forward pass was given.
    """
    try:
        yield
    except TflossError:
        raise
    except Exception as error:
        # Keras may have wrapped an error of tfloss.
        cause = _upstream.find_cause(error, TflossError)
        if cause is error and not getattr(error, "__notes__", None):
            error.add_note("\n".join([*_advice(error, batch), describe(batch)]))
        raise


def describe(batch: Any) -> str:
    """Returns the tensors of a batch, one line of text.

    Args:
      batch: Any nest of tensors.
    """
    leaves = named_leaves(batch, "batch")
    found = [f"{path}: {_kind(leaf)}" for path, leaf in leaves[:_SHOWN]]
    if len(leaves) > _SHOWN:
        found.append(f"and {len(leaves) - _SHOWN} more")
    return f"The batch of this forward pass: {', '.join(found)}."


def check_call(model: keras.Model) -> None:
    """Checks that a model can be called with one batch, as `model(batch, training=True)`.

    Args:
      model: The model.

    Raises:
      ModelError: Its `call` needs more inputs. The message has the file and the line.
    """
    call = type(model).call
    needed = [
        one.name
        for one in list(inspect.signature(call).parameters.values())[1:]
        if one.default is one.empty
        and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
        and one.name != "training"
    ]
    if len(needed) < 2:
        return
    name, given = type(model).__name__, ", ".join(needed)
    code = inspect.unwrap(call).__code__
    raise ModelError(
        f"{name}.call({given}) takes {len(needed)} inputs ({code.co_filename}:"
        f"{code.co_firstlineno}), but a trainer calls model(batch, training=True) with one "
        f"batch. Write `def call(self, batch, training=False):` and `{given} = batch`."
    )


def check_step_result(step: Callable[..., Any], returned: Any) -> None:
    """Checks what a `TrainStep.step` returned.

    Args:
      step: The method.
      returned: What it returned.

    Raises:
      LossError: It is no mapping. The message has the file and the line.
    """
    if isinstance(returned, Mapping):
        return
    code: Any = inspect.unwrap(step).__code__
    raise LossError(
        f"{step.__qualname__} ({code.co_filename}:{code.co_firstlineno}) returned "
        f"{'None' if returned is None else type(returned).__name__}. It must return the losses to "
        "show, {name: scalar}: what minimize() returned, such as "
        "`return self.minimize(self.forward, batch)`."
    )


def _kind(leaf: Any) -> str:
    if leaf is None:
        return "None"
    shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
    if shape is None or dtype is None:
        return type(leaf).__name__
    kinds = {tf.RaggedTensor: "ragged ", tf.SparseTensor: "sparse "}
    prefix = next((text for kind, text in kinds.items() if isinstance(leaf, kind)), "")
    return f"{prefix}{tf.as_dtype(dtype).name} {shape}"


def _is_double(leaf: Any) -> bool:
    return getattr(leaf, "dtype", None) == tf.float64


def _advice(error: Exception, batch: Any) -> list[str]:
    """What to change, as far as the error tells it."""
    found: list[str] = []
    named = isinstance(batch, Mapping)
    if isinstance(error, KeyError) and named and error.args and error.args[0] not in batch:
        names = ", ".join(map(repr, batch))
        found.append(f"The batch has no {error.args[0]!r}. It has: {names}.")
    if _upstream.caused_by_name_as_index(error) and not named:
        found.append(
            f"The batch is a {type(batch).__name__}, and the model reads it by name. Name its "
            'parts in the data set, for example .map(lambda x, y: {"x": x, "y": y}).'
        )
    if isinstance(error, ValueError) and "to unpack" in str(error) and named:
        found.append("The batch is a mapping; unpacking it gives its names. Read it by name.")
    if isinstance(error, ValueError) and not named and _INPUTS.search(str(error)):
        found.append(
            "The model takes inputs without labels, as Keras's fit calls it. Add a loss to it: "
            "tfloss.adapters.supervised(model, 'mse'), or tfloss.adapters.from_compiled(model) "
            "after compile()."
        )
    if _upstream.caused_by_symbolic_tensor(error):
        found.append(
            "The model is traced into a graph, where a tensor has no value in Python. Compute "
            "with TensorFlow or keras.ops instead of NumPy, decide with tf.where or tf.cond, and "
            "show values with tfloss.summary or tf.print."
        )
    if isinstance(error, TypeError | ValueError) and _DTYPES.search(str(error)):
        doubles = [path for path, leaf in named_leaves(batch, "batch") if _is_double(leaf)]
        of_numpy = f" {', '.join(doubles)}: float64, as NumPy's arrays are by default."
        numpy = of_numpy if doubles else ""
        found.append(
            f"TensorFlow converts no dtypes by itself.{numpy} Convert in the data set, or by "
            "tf.cast(x, tf.float32)."
        )
    if isinstance(error, ValueError) and "singleton tf.Variable" in str(error):
        found.append(
            "call() is traced several times. Create layers and variables in __init__, as "
            "attributes, or in build()."
        )
    if isinstance(error, ValueError) and "target.shape=" in str(error):
        found.append(
            "Sparse losses take one class number for each example, [batch]; categorical ones take "
            "one-hot labels, [batch, classes]. Use the loss that fits the labels."
        )
    return found + _advice_on_shapes(error, batch)


def _advice_on_shapes(error: Exception, batch: Any) -> list[str]:
    """What to change in the shapes of the batch, as far as the error and the shapes tell it."""
    found: list[str] = []
    shapes = [(path, getattr(leaf, "shape", None)) for path, leaf in named_leaves(batch, "batch")]
    ranks: dict[str, int | None] = {
        path: shape.rank for path, shape in shapes if isinstance(shape, tf.TensorShape)
    }
    if unknown := [path for path, rank in ranks.items() if rank is None]:
        found.append(
            f"{', '.join(unknown)} has no static rank, as after tf.numpy_function. Set the shape "
            "in the data set: tensor.set_shape([None, ...]), or tf.ensure_shape."
        )
    twice = [
        path
        for path, shape in shapes
        if shape is not None and ranks.get(path) and [*shape[:2]] == [None, None]
    ]
    if twice and _RANK.search(str(error)):
        found.append(
            f"{', '.join(twice)} has two dimensions of unknown length. Was .batch() called twice?"
        )
    if scalars := [path for path, rank in ranks.items() if rank == 0]:
        found.append(
            f"{', '.join(scalars)} is a scalar: the data set seems to yield single examples. "
            "Call .batch(batch_size) on it."
        )
    return found
