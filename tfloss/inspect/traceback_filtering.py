"""Shortens the errors that leave tfloss to the frames of the user's code. Host code.

    @filtered_tracebacks
    def train(...):  # calls the user's model, data functions and hooks

A model is called through dozens of frames of tfloss, Keras and TensorFlow. Only the user's own
frames tell what to change. `keras.config.disable_traceback_filtering()` shows all frames.
"""

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.common.other_names import ARGUMENTS, hint
from tfloss.errors import MetricError, TflossError
from tfloss.inspect.source_lines import is_library, is_tfloss, shown_path

P = ParamSpec("P")
R = TypeVar("R")


def filtered_tracebacks(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates an entry point of tfloss: errors that leave it are shortened, see `shorten`.

    While it runs, Keras raises the errors of a model as they are. Otherwise Keras replaces each of
    them by a copy with a longer message, or by a `RuntimeError` if it can't copy it. Calls inside
    of another entry point change nothing, so that an error is whole wherever tfloss handles it.

    Args:
      function: Host code that calls the user's model, data functions or hooks.
    """

    @functools.wraps(function)
    def entry_point(*args: P.args, **kwargs: P.kwargs) -> R:
        if not keras.config.is_traceback_filtering_enabled():
            return function(*args, **kwargs)
        # In this order: when the error is shortened, Keras's own filtering is on again.
        with _Shortening(), unwrapped_keras_errors():
            try:
                return function(*args, **kwargs)
            except TypeError as error:
                if error.__traceback__ is not None and error.__traceback__.tb_next is None:
                    _explain_call(error, function, kwargs)  # no line of the function was reached
                raise

    return entry_point


def _explain_call(error: TypeError, function: Any, given: Iterable[str]) -> None:
    """Says in the error of a call with wrong arguments what to write instead."""
    known = inspect.signature(function).parameters
    for name in given:
        if name not in known and (text := hint(name, known, ARGUMENTS)):
            error.add_note(text.strip())
    missing = [n for n, one in known.items() if one.default is one.empty and n != "self"]
    if not getattr(error, "__notes__", None):
        taken = [name for name in known if name != "self"]
        error.add_note(f"It takes: {', '.join(taken)}. Needed: {', '.join(missing) or 'nothing'}.")


@contextlib.contextmanager
def unwrapped_keras_errors() -> Iterator[None]:
    """Inside the `with`, Keras raises errors in this thread as they are."""
    enabled = keras.config.is_traceback_filtering_enabled()
    keras.config.disable_traceback_filtering()
    try:
        yield
    finally:
        if enabled:
            keras.config.enable_traceback_filtering()


class _Shortening:
    """A context manager that shortens the error that leaves it.

    A generator with `contextlib.contextmanager` would add its own frame to the traceback.
    """

    def __enter__(self) -> None:
        """Does nothing."""

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Shortens the error and lets it pass."""
        if isinstance(error, Exception):
            shorten(error)


def shorten(error: BaseException) -> None:
    """Removes the frames of libraries from an error and from those that led to it. Host code.

    This does nothing after `keras.config.disable_traceback_filtering()`.

    Args:
      error: The error. Its traceback and its message are changed in place.
    """
    if not keras.config.is_traceback_filtering_enabled():
        return
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        if _explained(following):
            following.__traceback__ = _own_frames(following.__traceback__)
        _unwrap_autograph(following)
        if isinstance(following, MetricError):  # its message has the lines of its cause
            following.__cause__, following.__suppress_context__ = None, True
        if isinstance(following, tf.errors.OpError):
            _upstream.replace_message(following, short_message(str(following)))
        following = following.__cause__ or (
            None if following.__suppress_context__ else following.__context__
        )


def _explained(error: BaseException) -> bool:
    """Whether the frames of libraries tell nothing that the message and the others don't tell."""
    if isinstance(error, TflossError | tf.errors.OpError) or getattr(error, "__notes__", None):
        return True
    frames = _chain(error.__traceback__)
    library = [_is_library_frame(one) for one in frames]
    if True in library and False in library[library.index(True) :]:
        return True  # a library called the user's code, which is at fault
    said = ValueError | TypeError | OSError  # what tfloss itself raises, with a message
    last = frames[-1].tb_frame.f_code.co_filename if frames else ""
    return isinstance(error, said) and (is_tfloss(last) or last == "<string>" and library[-1])


def _chain(traceback: TracebackType | None) -> list[TracebackType]:
    found = []
    while traceback is not None:
        found.append(traceback)
        traceback = traceback.tb_next
    return found


def _is_library_frame(traceback: TracebackType) -> bool:
    """Whether the frame is not the user's. The code of dataclasses has no file, but a module."""
    frame = traceback.tb_frame
    module = str(frame.f_globals.get("__name__")).split(".")[0]
    return is_library(frame.f_code.co_filename) or (
        frame.f_code.co_filename == "<string>" and module in ("tfloss", "keras", "tensorflow")
    )


def _own_frames(traceback: TracebackType | None) -> TracebackType | None:
    """The same traceback with the frames of the user's code only."""
    found: TracebackType | None = None
    for one in reversed(_chain(traceback)):
        if not _is_library_frame(one):
            found = TracebackType(found, one.tb_frame, one.tb_lasti, one.tb_lineno)
    return found


_IN_USER_CODE = "in user code:\n"


def _unwrap_autograph(error: BaseException) -> None:
    """Replaces the traceback that AutoGraph writes into a message by the user's last line."""
    said = str(error)
    if not said.startswith(_IN_USER_CODE):
        return
    frames = [found for line in said.splitlines() if (found := _FRAME.match(line.rstrip(" *")))]
    own = [one for one in frames if not is_library(one["path"])]
    # Behind the frames stand the type and the message, indented as they are.
    last = said.rpartition(f"    {type(error).__name__}: ")[2].strip()
    text = "\n".join(line.removeprefix("    ") for line in last.splitlines())
    if own and text:
        line = own[-1]
        text += f"\nIn: {shown_path(line['path'])}:{line['line']} (in {line['name']})"
        _upstream.replace_message(error, text)


_FRAME = re.compile(r'\s*File "(?P<path>.*)", line (?P<line>\d+), in (?P<name>\S+)\s*$')
# Lines that tell nothing to somebody who doesn't debug TensorFlow itself.
_NOISE = re.compile(
    r"\s*(Graph execution error:|Detected at node .* defined at|<stack traces unavailable>"
    r"|\d+ (root error\(s\) found|successful operations|derived errors ignored)\."
    r"|Traceback \(most recent call last\):|\[\[.*\]\]|Stack trace for op definition:)"
)
_OP = re.compile(r"\s*(\[\[\{\{node .*?\}\}\]\])?\s*\[Op:\w*\]( name:.*)?\s*$")
_ROOT = re.compile(r"\s*\(\d+\) [A-Z_]+:\s+")
_FUNCTION = re.compile(r"\{\{function_node [^}]*\}\}\s*")
_CACHE_LOCK = re.compile(r"cache lockfile already exists \('(?P<path>[^']+)'\)")


def short_message(message: str) -> str:
    """Removes graphs' stack traces, names of nodes and frames of libraries from a message.

    Args:
      message: The message of a `tf.errors.OpError`.

    Returns:
      What the op said, and the line of the user's code that made it.
    """
    if locked := _CACHE_LOCK.search(message):
        return (
            f"The cache of the data set is locked: {locked['path']!r} exists. A process that was "
            "filling the file of .cache(filename) was killed, or another one is filling it now. If "
            "none is running, delete that file and start again: the cache is filled again. If one "
            "is, give each run its own file."
        )
    said: list[str] = []
    lines: list[str] = []  # the innermost line of each stack trace
    innermost: str | None = None
    skipping = inside = False
    for line in message.splitlines():
        found = _FRAME.match(line)
        if found:
            skipping = True  # the line of code that follows
            if is_library(found["path"]):
                inside = True  # before this, the script only calls tfloss
            elif inside:
                innermost = f"{shown_path(found['path'])}:{found['line']} (in {found['name']})"
        elif not line.strip():
            skipping = False
        elif _NOISE.match(line):
            if innermost is not None:
                lines.append(innermost)
            innermost, inside = None, False
        elif not skipping:
            said.append(_FUNCTION.sub("", _ROOT.sub("", _OP.sub("", line))))
    said = list(dict.fromkeys(line for line in said if line.strip()))
    if innermost is not None:
        lines.append(innermost)
    if lines:
        said.append("In: " + ", ".join(dict.fromkeys(lines)))
    return "\n".join(said) or message
