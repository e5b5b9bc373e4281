"""The state of an iterator, saved for a checkpoint and restored. Host code.

The position in the data counts the batches that were trained on. An iterator that is read ahead is
past it, so an earlier state is saved, and the batches between the two are read again.
"""

import functools
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfloss.common import activity
from tfloss.common.files import write_files
from tfloss.common.logger import ChiefLogger

MAX_STATE_BYTES = 64 * 2**20  # of an iterator's state; if it is larger, reading again is better
_NAME = "iterator"
_CHUNK = 256  # batches that are read past in one call
_LOG_SECONDS = 10.0


class IteratorStates:
    """States of one iterator at several positions.

    Args:
      batches: Position of the iterator now, in batches from the beginning of the data.
      files: State of the iterator now. None stands for the beginning of the data.
    """

    def __init__(self, batches: int = 0, files: Mapping[str, bytes] | None = None):
        """Starts with one state."""
        self._known: list[tuple[int, dict[str, bytes]]] = [(batches, dict(files or {}))]

    def add(self, batches: int, files: Mapping[str, bytes]) -> None:
        """Adds a state.

        Args:
          batches: Position of the iterator, not before that of the last state.
          files: State of the iterator.
        """
        if self._known[-1][0] == batches:
            self._known.pop()
        self._known.append((batches, dict(files)))

    def at(self, batches: int) -> tuple[dict[str, bytes], int]:
        """Finds the newest state that is not after a position, and forgets older ones.

        Args:
          batches: Position in batches from the beginning of the data.

        Returns:
          The state's files, and the number of batches to read past from there.
        """
        index = max(i for i, (there, _) in enumerate(self._known) if i == 0 or there <= batches)
        there, files = self._known[index]
        del self._known[:index]
        return files, batches - there


def iterator_files(iterator: Any, max_bytes: float = math.inf) -> dict[str, bytes] | str:
    """Saves the state of a `tf.data` iterator.

    Args:
      iterator: Iterator of a `tf.data.Dataset`.
      max_bytes: Upper bound on the size of the state.

    Returns:
      The contents of the state's files by name; or a string that says why there are none.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            tf.train.Checkpoint(iterator=iterator).write(f"{folder}/{_NAME}")
        except tf.errors.OpError as error:  # such as Python functions, whose state can't be saved
            return error.message.splitlines()[0].partition(" [Op:")[0].rpartition("}} ")[2]
        files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    size = sum(map(len, files.values()))
    if size > max_bytes:
        return f"the iterator's state takes {size / 2**20:,.0f} MB"
    return files


def restore_iterator(iterator: Any, files: Mapping[str, bytes]) -> None:
    """Moves an iterator of the same data set to a saved state.

    Args:
      iterator: Iterator of a `tf.data.Dataset`.
      files: What `iterator_files` returned.

    Raises:
      tf.errors.OpError: The state belongs to another data set.
      ValueError: The state belongs to another data set.
      AssertionError: The state belongs to another data set.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), files)
        path = f"{folder}/{_NAME}"
        tf.train.Checkpoint(iterator=iterator).read(path).assert_consumed()


@activity.during("reading past batches, up to the checkpoint's position")
def read_past(
    iterator: Any,
    count: int | None,
    logger: ChiefLogger | None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Takes batches from an iterator, plain or distributed, and drops them.

    Args:
      iterator: Iterator to read.
      count: Number of batches. None reads all.
      logger: Receives the progress every ten seconds. None: nothing is logged.
      clock: Returns the time in seconds.

    Raises:
      tf.errors.OutOfRangeError: The data end before `count` batches.
    """
    logged, done = clock(), 0
    while count is None or done < count:
        number = _CHUNK if count is None else min(_CHUNK, count - done)
        try:
            _drop(iterator, tf.constant(number))
        except tf.errors.OutOfRangeError:
            if count is None:
                return
            raise
        done += number
        if clock() - logged > _LOG_SECONDS:
            logged = clock()
            if logger is not None:
                logger.info(
                    f"read past {done:,}{'' if count is None else f' of {count:,}'} batches"
                )


@functools.partial(tf.function, autograph=False)
def _drop(iterator: Any, number: tf.Tensor) -> tf.Tensor:
    def body(i: tf.Tensor) -> Any:
        taken = tf.nest.flatten(next(iterator), expand_composites=True)
        with tf.control_dependencies([x for x in taken if isinstance(x, tf.Tensor)]):
            return i + 1

    return tf.while_loop(lambda i: i < number, body, [0], parallel_iterations=1)[0]
