"""Finds the line of the user's code that an error, an op or a call comes from.

    caller_line()      # of the running call: "model.py:12 (in call)"
    error_line(error)  # of an exception: "model.py:12 (in call)"
    op_line(op)        # of an op in a traced graph: "model.py:12, in call"

The user's code is all code outside of tfloss, Keras, TensorFlow, TensorBoard, absl, NumPy,
optree and Python's standard library. Host code, usable at trace time.
"""

import contextlib
import functools
import inspect
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.common.logger import in_notebook

_TFLOSS = Path(__file__).parents[1]
_LIBRARIES = {
    _TFLOSS,
    *(Path(str(module.__file__)).parent for module in (tf, keras, contextlib)),
    *(
        Path(str(keras.__file__)).parents[1] / name
        for name in ("absl", "numpy", "optree", "tensorboard")
    ),
}


def shown_path(path: str) -> str:
    """Returns how a person knows a source file: a cell of a notebook by its number.

    Args:
      path: Path of the file, as in `traceback.FrameSummary.filename`.

    Returns:
      The path, or `Cell In[3]`, as IPython's tracebacks have it.
    """
    if not in_notebook():
        return path
    shell: Any = sys.modules["IPython"].get_ipython()
    return " ".join(shell.compile.format_code_name(path) or [path])


def is_tfloss(path: str) -> bool:
    """Returns whether a source file belongs to tfloss.

    Args:
      path: Path of the file, as in `traceback.FrameSummary.filename`.
    """
    return _TFLOSS in PurePath(path).parents


@functools.cache
def is_library(path: str) -> bool:
    """Returns whether a source file is not the user's.

    Args:
      path: Path of the file, as in `traceback.FrameSummary.filename`.
    """
    return not _LIBRARIES.isdisjoint(PurePath(path).parents) or _upstream.is_autograph_file(path)


def caller_line() -> str:
    """Returns the innermost running line of the user's code, as `file.py:12 (in call)`."""
    frame = inspect.currentframe()
    while frame is not None:
        path = frame.f_code.co_filename
        if not is_library(path):
            return f"{shown_path(path)}:{frame.f_lineno} (in {frame.f_code.co_name})"
        frame = frame.f_back
    return "unknown line"


def error_line(error: BaseException) -> str:
    """Returns the innermost line of the user's code that an exception passed.

    Args:
      error: An exception that was raised.

    Returns:
      The line, as `file.py:12 (in call)`.
    """
    return traceback_line(traceback.extract_tb(error.__traceback__))


def traceback_line(frames: Iterable[Any]) -> str:
    """Returns the innermost line of the user's code in a traceback.

    Args:
      frames: `traceback.FrameSummary` objects, outermost first.

    Returns:
      The line, as `file.py:12 (in call)`.
    """
    for frame in reversed(list(frames)):
        if not is_library(frame.filename):
            return f"{shown_path(frame.filename)}:{frame.lineno} (in {frame.name})"
    return "unknown line"


def op_line(op: tf.Operation) -> str:
    """Returns the line of the user's code that made an op.

    Args:
      op: An op of a traced graph.

    Returns:
      The line, as `file.py:12, in call`.
    """
    frames = [frame for frame in op.traceback or () if not is_library(frame.filename)]
    if not frames:
        return "not in your code"
    name = frames[-1].name or "<lambda>"  # AutoGraph drops the name of a lambda
    return f"{shown_path(frames[-1].filename)}:{frames[-1].lineno}, in {name}"


def running_lines() -> frozenset[str]:
    """Returns the lines that are running now, in all frames of this thread, as `op_line` has them.

    An op that is traced from here on, and whose line is one of them, was made by tfloss itself.
    """
    return frozenset(
        f"{shown_path(f.filename)}:{f.lineno}, in {f.name}" for f in traceback.extract_stack()
    )
