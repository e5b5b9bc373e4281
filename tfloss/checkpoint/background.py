"""Checkpoints written by another thread, while training goes on. Host code, without TensorFlow.

writer = BackgroundWriter()
directory.save(100, variables, background=writer)    # returns when the values are copied
writer.wait()                                        # at the end, so that nothing is lost
"""

import concurrent.futures
from collections.abc import Callable
from typing import Any

import numpy as np


class BackgroundWriter:
    """One write at a time in a thread of its own. What goes wrong there is raised here.

    It keeps the memory that it copies values to, as much as all variables take: taking it anew
    each time would cost more than the copying.

    Not for use by several threads.
    """

    def __init__(self) -> None:
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "tfloss-checkpoint")
        self._write: concurrent.futures.Future[Any] | None = None
        self._memory: dict[str, np.ndarray] = {}

    def copy(self, name: str, value: np.ndarray) -> np.ndarray:
        """A copy of a value for the next write, valid until `copy` is called for that name again.

        Call `wait` before the first of them.
        """
        memory = self._memory.get(name)
        if memory is None or (memory.shape, memory.dtype) != (value.shape, value.dtype):
            memory = self._memory[name] = np.empty_like(value)
        np.copyto(memory, value)
        return memory

    def start(self, work: Callable[[], Any]) -> None:
        """Begins a write, when the one before is done. Raises what that one raised."""
        self.wait()
        self._write = self._thread.submit(work)

    def then(self, work: Callable[[], Any]) -> None:
        """Does something more after the write, if that succeeds; `wait` waits for it too."""
        write = self._write

        def after() -> None:
            if write is not None:
                write.result()  # raises what it raised; `work` is left out then
            work()

        self._write = self._thread.submit(after)

    def wait(self) -> None:
        """Returns when nothing is left to write. Raises, once, what the last write raised."""
        if self._write is not None:
            concurrent.futures.wait([self._write])  # after Ctrl-C here, one can wait again
            write, self._write = self._write, None
            write.result()
