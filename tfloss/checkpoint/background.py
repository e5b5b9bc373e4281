"""Writes checkpoints in a thread while training continues. Host code, without TensorFlow.

writer = BackgroundWriter()
directory.save(100, variables, background=writer)    # returns as soon as the values are copied
writer.wait()                                        # before the program ends
"""

import concurrent.futures
from collections.abc import Callable
from typing import Any

import numpy as np


class BackgroundWriter:
    """Runs one write at a time in its own thread. An error there is raised by the next call here.

    It keeps the buffers that values are copied to, as much memory as all variables take: allocating
    them again for each checkpoint would cost more than the copy.

    It is not thread-safe: one thread calls all of its methods.
    """

    def __init__(self) -> None:
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "tfloss-checkpoint")
        self._write: concurrent.futures.Future[Any] | None = None
        self._buffers: dict[str, np.ndarray] = {}

    def copy(self, name: str, value: np.ndarray) -> np.ndarray:
        """Copies a value for the next write. Call `wait` before the first copy.

        Args:
          name: The name of the variable. Each name has its own buffer.
          value: The value, of any shape and dtype.

        Returns:
          The copy, valid until `copy` is called for the same name again.
        """
        buffer = self._buffers.get(name)
        if buffer is None or (buffer.shape, buffer.dtype) != (value.shape, value.dtype):
            buffer = self._buffers[name] = np.empty_like(value)
        np.copyto(buffer, value)
        return buffer

    def start(self, write: Callable[[], Any]) -> None:
        """Starts a write as soon as the previous one is done. Raises the error of the previous one.

        Args:
          write: The function that writes. It runs in the background thread.
        """
        self.wait()
        self._write = self._thread.submit(write)

    def then(self, function: Callable[[], Any]) -> None:
        """Calls a function after the current write, if that succeeds. `wait` waits for both.

        Args:
          function: The function. It runs in the background thread.
        """
        write = self._write

        def after_write() -> None:
            if write is not None:
                write.result()  # raises the error of the write: `function` isn't called then
            function()

        self._write = self._thread.submit(after_write)

    def wait(self) -> None:
        """Waits until nothing is left to write. Raises the error of the last write, once."""
        if self._write is not None:
            concurrent.futures.wait([self._write])  # after Ctrl-C here, one can wait again
            write, self._write = self._write, None
            write.result()
