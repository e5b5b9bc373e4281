"""Recognises errors of TensorFlow and Keras.

TensorFlow has one Python class for each status code and raises it for many reasons. `error.op` is
None for errors of a `tf.function`, so that only the text of the message tells the reason.
"""

import re
import traceback
from typing import Any

import tensorflow as tf
from tensorflow.python.debug.lib import check_numerics_callback


def find_cause(error: BaseException, kind: type[BaseException]) -> BaseException:
    """Returns the first error of a kind in the chain that led to `error`, or `error` itself.

    Keras and AutoGraph wrap what a model's `call` raises, sometimes in another type, and hide the
    message in theirs. The original stays in the chain of contexts, which is not documented.

    Args:
      error: The error that was caught.
      kind: Type of the error to find.
    """
    found, seen = error, error
    while seen is not None:
        if isinstance(seen, kind):
            found = seen
        seen = seen.__cause__ or seen.__context__
    return found


def replace_message(error: BaseException, message: str) -> None:
    """Gives an error another message, in place.

    `OpError.message` has no setter, and another error object would lose the traceback and the
    identity of this one. AutoGraph's `KeyError` has its message beside its key.
    """
    of_key = "_MultilineMessageKeyError__message"
    if isinstance(error, tf.errors.OpError):
        setattr(error, "_message", message)  # noqa: B010 - private
    elif hasattr(error, of_key):
        setattr(error, of_key, message)
    else:
        error.args = (message, *error.args[1:])


def caused_by_symbolic_tensor(error: BaseException) -> bool:
    """Returns whether Python or NumPy asked for the value of a tensor of a graph.

    Depending on who asks, this is a TypeError, an AttributeError or a NotImplementedError.
    """
    return (
        "symbolictensor" in str(error).lower()
        or "symbolic `tf.Tensor`" in str(error)
        or ("symbolic tf.Tensor" in str(error))
    )


def caused_by_name_as_index(error: BaseException) -> bool:
    """Returns whether a tensor, a tuple or a list was read by a name, as in `batch["image"]`.

    TensorFlow and Python raise a TypeError for every wrong index.
    """
    text = str(error)
    return isinstance(error, TypeError) and (
        bool(re.search(r"are valid indices, got ['\"]", text))
        or bool(re.search(r"indices must be integers or slices, not str", text))
    )


def caused_by_merge_call(error: RuntimeError) -> bool:
    """Returns whether replicas were synchronised inside a nested graph, where they can't be."""
    return "merge_call" in str(error)


def caused_by_collectives_of_another_strategy(error: tf.errors.OpError) -> bool:
    """Returns whether two strategies of this process use the same collectives.

    Each strategy numbers its collectives from the same number on, and TensorFlow keeps the devices
    and shapes of each number.
    """
    text = str(error)
    return "collective instance" in text or "joining a group" in text


def caused_by_unequal_shapes_in_concat(error: tf.errors.InvalidArgumentError) -> bool:
    """Returns whether `tf.concat` got tensors whose shapes differ beyond the first dimension."""
    return "ConcatOp" in str(error)


def caused_by_missing_deterministic_kernel(error: tf.errors.OpError) -> bool:
    """Returns whether op determinism is on and an op has no deterministic kernel.

    Each kernel words its own message; all contain "deterministic" or "determinism".
    """
    return "determinis" in error.message.lower()


def caused_by_strings(error: tf.errors.OpError) -> bool:
    """Returns whether an op was to make numbers of strings. `tf.cast` can't be refused earlier."""
    return "Cast string to" in error.message


def raised_by_iterator(error: Exception) -> bool:
    """Returns whether a `tf.data` iterator raised an error of a graph, rather than another op.

    The message names the ops that failed, such as `{{node IteratorGetNext}}`. `IteratorGetNext:0`
    and `IteratorGetNext/_4` are only tensors, which the message of another op may name: what an
    assertion has checked, and what another device receives.
    """
    return re.search(r"IteratorGetNext\w*(?!\w|:\d|/_\d)", str(error)) is not None


def failed_numerics_check(error: Exception) -> tuple[list[str], list[Any]]:
    """Returns what `tf.debugging.enable_check_numerics` found: lines of text, and the op's inputs.

    The inputs are a local variable of TensorFlow's callback. They are in the error's traceback
    unless TensorFlow or Keras filters it. The message only prints them, and elides most of a large
    tensor. The list is empty if the op was part of a graph; then the lines describe the inputs as
    far as TensorFlow does.
    """
    callback = check_numerics_callback.CheckNumericsCallback.callback.__code__
    inputs: list[Any] = []
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code is callback:
            inputs = list(frame.f_locals.get("inputs", ()))
            break
    words = ["!!!", "dtype:", "shape:", "elements:"]
    if not inputs:
        words += ["Input tensor", "Tensor("]
    lines = [line.strip() for line in str(error).splitlines() if any(w in line for w in words)]
    if lines:
        lines[0] = lines[0].strip("! ")
    return lines, inputs
