"""TensorBoard event files: a file for a run, and its records and their steps.

    file = EventFileWriter("runs/digits/train")
    file.write(event.SerializeToString())
    file.flush(); file.close()

An event file is a TFRecord file of `Event` protocol buffers. The first one holds the version of
the format. All of this module is host code.
"""

import contextlib
import errno
import itertools
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

_VERSION = "brain.Event:2"  # a reader takes a file without it for one of version 1
_WRITER = "tfloss"  # in the first event: the file is of this module
_HEADER, _FOOTER = 12, 4  # bytes of a record: the event's length and a checksum of it; of the event


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
        first.source_metadata.writer = _WRITER
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


def split_records(data: bytes, writer: str = _WRITER) -> Iterator[tuple[bytes, int | None]]:
    """Splits the content of an event file.

    Each record has a checksum of its length. So one damaged byte doesn't hide the records after it:
    the next one is searched for.

    Args:
      data: The content. A record that a killed process left incomplete at the end is ignored.
      writer: The program that must have written the file, as its first event says.

    Yields:
      `(record, step)` of each complete record. What is damaged, and all of a file that another
      program wrote, has the step None.
    """
    start, end = 0, _record_end(data, 0)
    if end is None or not _is_first(data[:end], writer):
        yield data, None
        return
    starts = _undamaged(data)
    for start, end in itertools.pairwise(starts):
        yield data[start:end], _step(data[start + _HEADER : end - _FOOTER])
    start = starts[-1]
    while len(data) - start >= _HEADER:
        end = _record_end(data, start)
        if end is None:
            if not data[start:].strip(b"\0"):  # zeros, which a power failure can leave
                return
            end, step = _next_record(data, start + 1), None
        elif end > len(data):
            return
        else:
            step = _step(data[start + _HEADER : end - _FOOTER])
        yield data[start:end], step
        start = end


def record_names(record: bytes) -> list[str]:
    """Returns the tags of the values in a complete record that `split_records` gave a step."""
    event = tf.compat.v1.Event.FromString(record[_HEADER:-_FOOTER])
    return [value.tag for value in event.summary.value]


def _new_path(logdir: Path) -> Path:
    """Creates an empty file, which TensorBoard reads after those of earlier runs."""
    prefix = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
    for number in itertools.count():
        path = logdir / f"{prefix}.{number}.v2"
        with contextlib.suppress(FileExistsError):  # maybe a link to a file of somebody else
            path.touch(exist_ok=False)
            return path
    raise AssertionError


def _is_first(record: bytes, writer: str) -> bool:
    """Whether this is the record that a file of a program begins with."""
    try:
        event: Any = tf.compat.v1.Event.FromString(record[_HEADER:-_FOOTER])
    except Exception:  # protobuf's DecodeError, which has no public name
        return False
    return event.source_metadata.writer == writer


def _step(event: bytes) -> int | None:
    """The step of a serialized event; None if it is damaged."""
    try:
        return int(tf.compat.v1.Event.FromString(event).step)
    except Exception:  # protobuf's DecodeError, which has no public name
        return None


def _record_end(data: bytes, start: int) -> int | None:
    """Where the record that starts here ends; None if no record starts here."""
    header = data[start : start + _HEADER]
    if len(header) < _HEADER or not _is_header(np.frombuffer(header, np.uint8)[None])[0]:
        return None
    return start + _HEADER + struct.unpack_from("<Q", header)[0] + _FOOTER


def _undamaged(data: bytes) -> list[int]:
    """The starts of the complete records before the first damaged one, and the end of the last.

    The checksums of all lengths are computed together, which takes a tenth of the time.
    """
    starts, last, length_at = [0], len(data) - _HEADER - _FOOTER, struct.Struct("<Q").unpack_from
    while starts[-1] <= last:
        end = starts[-1] + _HEADER + length_at(data, starts[-1])[0] + _FOOTER
        if end > len(data):
            break
        starts.append(end)
    content, good = np.frombuffer(data, np.uint8), 0
    for at in range(0, len(starts) - 1, _CHUNK // _HEADER):
        part = np.array(starts[at : min(at + _CHUNK // _HEADER, len(starts) - 1)])
        right = _is_header(content[part[:, None] + np.arange(_HEADER)])
        good = at + int(np.argmin(right) if not right.all() else right.size)
        if not right.all():
            break
    return starts[: good + 1]


def _next_record(data: bytes, start: int) -> int:
    """Where the first record at or after a position starts; the end of the data without one."""
    for at in range(start, len(data) - _HEADER + 1, _CHUNK):
        part = np.frombuffer(data[at : at + _CHUNK + _HEADER - 1], np.uint8)
        found = np.flatnonzero(_is_header(np.lib.stride_tricks.sliding_window_view(part, _HEADER)))
        if found.size:
            return at + int(found[0])
    return len(data)


_CHUNK = 2**20


def _is_header(headers: np.ndarray) -> np.ndarray:
    """Whether the checksums of lengths are right. uint8 [n, 12] -> bool [n]."""
    crc = np.full(len(headers), 0xFFFFFFFF, np.uint32)
    for byte in headers[:, :8].T:
        crc = _CRC32C[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    masked = ((crc >> 15) | (crc << 17)) + np.uint32(0xA282EAD8)  # as in the TFRecord format
    expected = np.ascontiguousarray(headers[:, 8:]).view("<u4")[:, 0]
    return masked == expected


def _crc32c_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(0x82F63B78), np.uint32(0))
    return table


_CRC32C = _crc32c_table()
