"""Lets a run survive what a hook can't write: a full disk, a quota, a file system that is away.

    self._errors = WriteErrors(self, "metrics.jsonl")
    if not self._errors.survive(write): ...       # kept, and tried again at the next log

`SaveCheckpoint(on_error="continue")` asks for this, for all files of the run. Host code.
"""

import errno
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tensorflow as tf

from tfloss.errors import CheckpointWriteError, TflossError
from tfloss.hooks.base import Hook

_TEXTS = tuple(
    os.strerror(number)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
)


class WriteErrors:
    """What one writer does about failed writes: warns once, and reports when it works again.

    Args:
      hook: The hook that writes.
      what: What it writes, for messages: "The curves".
      consequence: A sentence that says what becomes of the values that can't be written.

    Attributes:
      failing: Whether the last write failed.
    """

    def __init__(self, hook: Hook, what: str, consequence: str):
        self._hook, self._what, self._consequence = hook, what, consequence
        self.failing = False

    def survive(self, write: Callable[[], object]) -> bool:
        """Calls a function that writes.

        Args:
          write: The function. It must be possible to call it again after an error.

        Returns:
          Whether it succeeded.

        Raises:
          Exception: The error of `write`, if it is none of the disk, or if the run is to stop.
        """
        trainer = self._hook.trainer
        try:
            write()
        except Exception as error:
            if not (survives(trainer.hooks) and is_write_error(error)):
                raise
            if not self.failing:
                self.failing = True
                warnings.warn(
                    f"{self._what} can't be written at step {trainer.step}: {error} Training "
                    f"continues. {self._consequence}",
                    stacklevel=3,
                )
            return False
        if self.failing:
            self.failing = False
            trainer.logger.info(f"{self._what} can be written again, at step {trainer.step}.")
        return True


def survives(hooks: Iterable[Any]) -> bool:
    """Returns whether a run continues after a failed write.

    Args:
      hooks: The hooks of the run. One of them may have `on_error="continue"`.
    """
    return any(getattr(hook, "on_error", None) == "continue" for hook in hooks)


def is_write_error(error: BaseException) -> bool:
    """Returns whether an error says that the disk took no data.

    Keras and HDF5 raise errors of their own. Their texts hold that of the operating system.

    Args:
      error: Any error. Those that it was raised from count, too.
    """
    return any(
        isinstance(one, CheckpointWriteError)
        or (isinstance(one, OSError) and not isinstance(one, TflossError))
        or (
            isinstance(one, tf.errors.OpError | RuntimeError | ValueError)
            and any(text in str(one) for text in _TEXTS)
        )
        for one in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
