"""Finds the line of the user's code that an error, an op or a call comes from.

    caller_line()      # of the running call: "model.py:12 (in call)"
    error_line(error)  # of an exception
    op_line(op)        # of an op in a traced graph: "model.py:12, in call"

The user's code is whatever does not belong to tfloss, Keras, TensorFlow or TensorBoard. Host code,
usable at trace time.
"""

import contextlib
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

_LIBRARIES = (
    str(Path(__file__).parents[1]) + "/",
    *(str(Path(str(module.__file__)).parent) + "/" for module in (tf, keras, contextlib)),
    str(Path(str(keras.__file__)).parent.parent / "tensorboard") + "/",
)


def is_library(path: str) -> bool:
    """Whether a source file belongs to tfloss, Keras, TensorFlow or TensorBoard."""
    return path.startswith(_LIBRARIES) or "__autograph_generated_file" in path


def caller_line() -> str:
    """`file.py:12 (in call)`: the innermost running frame of the user's code."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if not is_library(path):
            return f"{path}:{frame.f_lineno} (in {frame.f_code.co_name})"
        frame = frame.f_back
    return "unknown line"


def error_line(error: BaseException) -> str:
    """`file.py:12 (in call)`: the innermost frame of the user's code that an exception passed."""
    return traceback_line(traceback.extract_tb(error.__traceback__))


def traceback_line(frames: Iterable[Any]) -> str:
    """`file.py:12 (in call)`: the innermost frame of the user's code among `frames`.

    Args:
      frames: `traceback.FrameSummary` objects, outermost first.
    """
    for frame in reversed(list(frames)):
        if not is_library(frame.filename):
            return f"{frame.filename}:{frame.lineno} (in {frame.name})"
    return "unknown line"


def op_line(op: tf.Operation) -> str:
    """`file.py:12, in call`: where the user's code made an op."""
    frames = [frame for frame in op.traceback or () if not is_library(frame.filename)]
    if not frames:
        return "not in your code"
    name = frames[-1].name or "<lambda>"  # a lambda that AutoGraph has converted
    return f"{frames[-1].filename}:{frames[-1].lineno}, in {name}"
