"""Writes TensorBoard event files.

    file = EventFileWriter("runs/digits/train")
    file.write(event.SerializeToString())
    file.flush(); file.close()

An event file is a TFRecord file of `Event` protocol buffers. The first one holds the version of
the format, and the program that writes the file. `event_records` reads it. Host code.
"""

import contextlib
import errno
import itertools
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfloss.hooks.event_records import WRITER

_VERSION = "brain.Event:2"  # a reader takes a file without it for one of version 1


class EventFileWriter:
    """Writes one new event file. Host.

    Events are in a buffer until it is full or `flush` is called.

    Args:
      logdir: Directory of the file. It is created if it is missing; its parent must exist.

    Raises:
      OSError: The directory or the file can't be created.
    """

    def __init__(self, logdir: Path):
        logdir.mkdir(exist_ok=True)  # not its parents: a workdir that was moved stays away
        self.path = _new_path(logdir)
        self._flushed = 0
        with _os_errors(self.path):
            self._records = tf.io.TFRecordWriter(str(self.path))
        first: Any = tf.compat.v1.Event(wall_time=time.time(), file_version=_VERSION)
        first.source_metadata.writer = WRITER
        self.write(first.SerializeToString())

    def write(self, event: bytes) -> None:
        """Appends a serialized `Event`.

        Raises:
          OSError: The disk is full, or the file can't be written to any more.
        """
        with _os_errors(self.path):
            self._records.write(event)

    def flush(self) -> None:
        """Hands the buffer over to the operating system, so that readers see all events.

        Raises:
          OSError: The disk is full, or the file can't be written to any more.
        """
        with _os_errors(self.path):
            self._records.flush()
        if not self.path.exists():
            raise FileNotFoundError(errno.ENOENT, "somebody has deleted it", str(self.path))
        self._flushed = self.path.stat().st_size

    def close(self) -> None:
        """Flushes and closes the file.

        Raises:
          OSError: The disk is full, or the file can't be written to any more.
        """
        with _os_errors(self.path):
            self._records.close()

    def abandon(self) -> None:
        """Closes the file after an error. Events that were not flushed are cut off.

        Readers would take a half-written event for the end of the file.
        """
        with contextlib.suppress(OSError, tf.errors.OpError):
            self._records.close()
        with contextlib.suppress(OSError):
            if self._flushed:
                os.truncate(self.path, self._flushed)
            else:
                self.path.unlink()


@contextlib.contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    """Turns TensorFlow's errors into those of the operating system."""
    try:
        yield
    except tf.errors.OpError as error:
        reason = error.message.rpartition("; ")[2]  # "/path/of/file; No space left on device"
        raise OSError(errno.EIO, reason, str(path)) from None


def _new_path(logdir: Path) -> Path:
    """Creates an empty file, which TensorBoard reads after those of earlier runs."""
    prefix = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
    for number in itertools.count():
        path = logdir / f"{prefix}.{number}.v2"
        with contextlib.suppress(FileExistsError):  # maybe a link to a file of somebody else
            path.touch(exist_ok=False)
            return path
    raise AssertionError
