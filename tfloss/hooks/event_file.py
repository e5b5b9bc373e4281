"""TensorBoard event files: a file for a run, and its records and their steps.

    file = EventFileWriter("runs/digits/train")
    file.write(event.SerializeToString())
    file.flush(); file.close()

An event file is a TFRecord file of `Event` protocol buffers. The first one holds the version of
the format. All of this module is host code.
"""

import itertools
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf

_VERSION = "brain.Event:2"  # a reader takes a file without it for one of version 1


class EventFileWriter:
    """Writes one new event file. Host.

    Events are in a buffer until it is full or `flush` is called.

    Args:
      logdir: Directory of the file. It is created if it is missing.

    Raises:
      OSError: The directory can't be created.
      tf.errors.OpError: The file can't be created.
    """

    def __init__(self, logdir: Path):
        logdir.mkdir(parents=True, exist_ok=True)
        self.path = _new_path(logdir)
        self._records = tf.io.TFRecordWriter(str(self.path))
        self.write(
            tf.compat.v1.Event(wall_time=time.time(), file_version=_VERSION).SerializeToString()
        )

    def write(self, event: bytes) -> None:
        """Appends a serialized `Event`.

        Raises:
          tf.errors.OpError: The disk is full, or the file can't be written to any more.
        """
        self._records.write(event)

    def flush(self) -> None:
        """Hands the buffer over to the operating system, so that readers see all events.

        Raises:
          tf.errors.OpError: The disk is full, or the file can't be written to any more.
        """
        self._records.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._records.close()


def split_records(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Splits the content of an event file.

    Args:
      data: The content. A record that a killed process left incomplete at the end is ignored.

    Yields:
      `(record, step)` of each complete record. A damaged record, which readers skip, has step 0.
    """
    start = 0
    while start + 12 <= len(data):
        # A record is the event's length, a checksum of it, the event, a checksum of it.
        (length,) = struct.unpack_from("<Q", data, start)
        end = start + 12 + length + 4
        if not length or end > len(data):
            return
        try:
            step = tf.compat.v1.Event.FromString(data[start + 12 : end - 4]).step
        except Exception:  # protobuf's DecodeError, which has no public name
            step = 0
        yield data[start:end], step
        start = end


def record_names(record: bytes) -> list[str]:
    """Returns the tags of the values in a complete record that `split_records` gave a step."""
    event = tf.compat.v1.Event.FromString(record[12:-4])
    return [value.tag for value in event.summary.value]


def _new_path(logdir: Path) -> Path:
    """Returns a path that doesn't exist and that TensorBoard reads after those of earlier runs."""
    prefix = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
    paths = (logdir / f"{prefix}.{number}.v2" for number in itertools.count())
    return next(path for path in paths if not path.exists())
