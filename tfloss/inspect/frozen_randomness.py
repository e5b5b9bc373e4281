"""Finds the lines of a model that draw from Python's or NumPy's generators while it is traced.

    with drawn_lines() as lines:
        function.get_concrete_function(...)
    lines                               # ["model.py:12, in call"]

What they draw is a constant of the trace: each step gets the same numbers. Host code.
"""

import contextlib
import random
import sys
import threading
from collections.abc import Generator
from types import FrameType
from typing import Any

import numpy as np

from tfloss.inspect.source_lines import is_library, shown_path


@contextlib.contextmanager
def drawn_lines() -> Generator[list[str]]:
    """Watches the lines of the user's code that run inside of the `with`, in all new threads too.

    After each of them, the states of the global generators are compared with those before it. When
    it ends, they are set back to what they were.

    Yields:
      The lines that have drawn, filled while the code runs.
    """
    watch = _Watch()
    before = sys.gettrace(), threading.gettrace(), random.getstate(), np.random.get_state()
    threading.settrace(watch)
    sys.settrace(watch)
    try:
        yield watch.lines
    finally:
        watch.end()
        sys.settrace(before[0])
        threading.settrace(before[1])  # type: ignore[arg-type]
        random.setstate(before[2])
        np.random.set_state(before[3])


class _Watch:
    """A trace function: Python calls it before each line of the frames that it asks for."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._state = _states()
        self._last = ""

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if _is_library(frame):
            return None
        self.end()
        # After a return, the rest of the line that called runs.
        here = frame.f_back if event == "return" else frame
        while here is not None and _is_library(here):
            here = here.f_back
        self._last = "" if here is None else _line(here)
        return self

    def end(self) -> None:
        """Blames the last line if a state has changed since."""
        now = _states()
        if now != self._state and self._last and self._last not in self.lines:
            self.lines.append(self._last)
        self._state = now


def _is_library(frame: FrameType) -> bool:
    path = frame.f_code.co_filename
    # "<frozen ...>", and the functions that dataclasses and namedtuples write.
    return path.startswith("<") or is_library(path)


def _line(frame: FrameType) -> str:
    return f"{shown_path(frame.f_code.co_filename)}:{frame.f_lineno}, in {frame.f_code.co_name}"


def _states() -> tuple[Any, ...]:
    """What differs after a number was drawn: the place in the state, and the state's first word."""
    python, numpy = random.getstate(), np.random.get_state(legacy=False)
    inner: Any = numpy["state"]  # type: ignore[call-overload]
    key = inner["key"][0] if "key" in inner else str(inner)
    return python[1][-1], python[1][0], python[2], inner.get("pos"), key, numpy.get("has_gauss")
