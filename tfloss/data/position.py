"""Where in its data a run is: what a checkpoint keeps of that, and how it is found again.

Three ways, by what the data are:

- "seek": a `Source` is read from its n-th batch on.
- "iterator": TensorFlow saves the state of an iterator (shuffle buffers and all), on one replica.
- "skip": anything else is read again from its beginning, up to there. That is exact if reading it
  again gives the same batches.

What counts is what was trained on. Batches that were read ahead are read again. Host code.
"""

import functools
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfloss.common.logger import ChiefLogger

MAX_STATE_BYTES = 64 * 2**20  # of an iterator's state; reading the data again is better than more
_NAME = "iterator"
_CHUNK = 256  # batches that are read past in one call
_TELL_SECONDS = 10.0


class IteratorStates:
    """States of an iterator from before now: it may be ahead of what was trained on.

    Args:
      batches: where the iterator is now.
      files: its state; none at the beginning of the data.
    """

    def __init__(self, batches: int = 0, files: Mapping[str, bytes] | None = None):
        self._known: list[tuple[int, dict[str, bytes]]] = [(batches, dict(files or {}))]

    def add(self, batches: int, files: Mapping[str, bytes]) -> None:
        """The state at a number of batches from the beginning."""
        if self._known[-1][0] == batches:
            self._known.pop()
        self._known.append((batches, dict(files)))

    def at(self, batches: int, *, forget_older: bool = True) -> tuple[dict[str, bytes], int]:
        """Finds the newest state that is not after a position.

        Args:
          batches: Position: the number of batches from the beginning of the data.
          forget_older: Whether to drop the states before that one. Pass False if training has not
            reached `batches` yet.

        Returns:
          The state's files, and the number of batches to read past from there.
        """
        index = max(i for i, (there, _) in enumerate(self._known) if i == 0 or there <= batches)
        there, files = self._known[index]
        if forget_older:
            del self._known[:index]
        return files, batches - there


def iterator_files(iterator: Any, most: float = math.inf) -> dict[str, bytes] | str:
    """The state of a `tf.data` iterator, as files by name; or why there is none to save.

    Args:
      most: bytes that it may take.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            tf.train.Checkpoint(iterator=iterator).write(f"{folder}/{_NAME}")
        except tf.errors.OpError as error:  # Python functions and others have no state to save
            return error.message.splitlines()[0].partition(" [Op:")[0].rpartition("}} ")[2]
        files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    size = sum(map(len, files.values()))
    if size > most:
        return f"its buffers take {size / 2**20:,.0f} MB"
    return files


def restore_iterator(iterator: Any, files: Mapping[str, bytes]) -> None:
    """Brings an iterator of the same data set to a saved state.

    Raises tf.errors.OpError, ValueError or AssertionError if it is that of other data.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        path = f"{folder}/{_NAME}"
        tf.train.Checkpoint(iterator=iterator).read(path).assert_consumed()


def read_past(
    iterator: Any,
    count: int | None,
    logger: ChiefLogger | None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Takes so many elements from an iterator, plain or distributed, and drops them.

    Args:
      count: how many; None: all.
      logger: Receives the progress every ten seconds. None: nothing is logged.

    Raises tf.errors.OutOfRangeError if there are not so many.
    """

    told, done = clock(), 0
    while count is None or done < count:
        many = _CHUNK if count is None else min(_CHUNK, count - done)
        try:
            _past(iterator, tf.constant(many))
        except tf.errors.OutOfRangeError:
            if count is None:
                return
            raise
        done += many
        if clock() - told > _TELL_SECONDS:
            told = clock()
            if logger is not None:
                logger.info(
                    f"read past {done:,}{'' if count is None else f' of {count:,}'} batches"
                )


@functools.partial(tf.function, autograph=False)
def _past(iterator: Any, many: tf.Tensor) -> tf.Tensor:
    def body(i):
        taken = tf.nest.flatten(next(iterator), expand_composites=True)
        with tf.control_dependencies([x for x in taken if isinstance(x, tf.Tensor)]):
            return i + 1

    return tf.while_loop(lambda i: i < many, body, [0], parallel_iterations=1)[0]
