"""Finds the op of a forward pass whose gradient failed, and the line that called it.

When a gradient is computed eagerly, the traceback holds only the ops of the backward pass, which no
user has written. TensorFlow calls the gradient of each op in `backprop._gradient_function`, whose
local variables have the op's name, inputs and outputs. `tf.debugging.enable_check_numerics` sees
the ops of a forward pass by `op_callbacks`. Nothing public does either.
"""

import contextlib
import inspect
import traceback
from collections.abc import Callable, Generator
from typing import Any

from tensorflow.python.eager import backprop
from tensorflow.python.framework import op_callbacks

_GRADIENT = vars(backprop)["_gradient_function"].__code__

Call = tuple[str, str, int]
"""An op's type, and the file and line that called it."""


class ForwardOps:
    """The ops of an eager forward pass, by the tensors that they take and return."""

    def __init__(self) -> None:
        self._calls: dict[int, list[Call]] = {}
        self._tensors: list[Any] = []  # kept, so that no other gets the identity of one of them

    @contextlib.contextmanager
    def recorded(self, is_library: Callable[[str], bool]) -> Generator[None]:
        """Records the ops that run inside the `with`.

        Args:
          is_library: Whether a file is not the user's.
        """

        def callback(op_type: str, inputs: Any, attrs: Any, outputs: Any, *_: Any) -> Any:
            frame: Any = inspect.currentframe()
            while frame is not None and (
                frame.f_code is callback.__code__ or is_library(frame.f_code.co_filename)
            ):
                frame = frame.f_back
            if frame is not None:
                call = (op_type, frame.f_code.co_filename, frame.f_lineno)
                for tensor in (*inputs, *outputs):
                    self._tensors.append(tensor)
                    self._calls.setdefault(id(tensor), []).append(call)
            return outputs

        op_callbacks.add_op_callback(callback)
        try:
            yield
        finally:
            op_callbacks.remove_op_callback(callback)

    def failed_gradient(self, error: Exception) -> tuple[str, Call | None] | None:
        """The op whose gradient raised an error, and the call of it if it was recorded.

        Args:
          error: An error with an unfiltered traceback.

        Returns:
          The op's type and its call; None if the error is not from a gradient.
        """
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_code is not _GRADIENT:
                continue
            names = frame.f_locals
            op = str(names["op_name"])
            for tensor in (*(names["outputs"] or ()), *(names["inputs"] or ())):
                for call in self._calls.get(id(tensor), ()):
                    if call[0] == op:
                        return op, call
            return op, None
        return None
