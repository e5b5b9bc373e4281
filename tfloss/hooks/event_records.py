"""Reads TensorBoard event files: their records and steps, from the end of a file. Host code.

Each record has a checksum of its length. So one damaged byte doesn't hide the records after it: the
next one is searched for. In the same way a record is found in the middle of a file, so that only
the end of a long file need be read.
"""

import itertools
import os
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import tensorflow as tf

WRITER = "tfloss"  # in the first event: the file is of `EventFileWriter`
WINDOW = 1 << 22  # bytes of the file that are read at once for a resumed run
_HEADER, _FOOTER = 12, 4  # bytes of a record: the event's length and a checksum of it; of the event
_LARGEST = 16  # windows: in so much data, a record that is followed by others to the end is found
_FIRST = 1 << 16  # bytes that hold the first record of a file, and more
_CHUNK = 1 << 20  # bytes whose checksums are computed together


def split_window(data: bytes) -> Iterator[tuple[bytes, int | None]]:
    """Splits a window of an event file. Any program may have written it.

    Args:
      data: The content between two places of `event_windows`. A record that a killed process left
        incomplete at the end is ignored.

    Yields:
      `(record, step)` of each complete record. What is damaged has the step None.
    """
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


def event_windows(file: BinaryIO, writer: str = WRITER) -> Iterator[int]:
    """Yields where windows of 4 MB or more begin, from the last one to the first.

    Each begins with a record. A file of another program has no windows.

    Args:
      file: The open file.
      writer: The program that must have written the file, as its first event says.
    """
    stop = length = os.fstat(file.fileno()).st_size
    file.seek(0)
    if not _is_own(file.read(_FIRST), writer):
        return
    while stop:
        place, start, size = 0, None, WINDOW
        while start is None:
            if (place := max(0, stop - size)) == 0:
                start = 0
                break
            file.seek(place)
            start, complete = _first_record(file.read(stop - place), torn=stop == length)
            if not complete and size < _LARGEST * WINDOW:
                start = None
            size *= 2
        yield place + start
        stop = place + start


def record_names(record: bytes) -> list[str]:
    """Returns the tags of the values in a complete record that `split_window` gave a step."""
    event = tf.compat.v1.Event.FromString(record[_HEADER:-_FOOTER])
    return [value.tag for value in event.summary.value]


def _is_own(data: bytes, writer: str) -> bool:
    """Whether this is the beginning of a file that a program has written."""
    end = _record_end(data, 0)
    if end is None or end > len(data):
        return False
    try:
        event: Any = tf.compat.v1.Event.FromString(data[_HEADER : end - _FOOTER])
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


def _undamaged(data: bytes, start: int = 0) -> list[int]:
    """The starts of the complete records before the first damaged one, and the end of the last.

    The checksums of all lengths are computed together, which takes a tenth of the time.
    """
    starts, last = [start], len(data) - _HEADER - _FOOTER
    length_at = struct.Struct("<Q").unpack_from
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


def _first_record(data: bytes, torn: bool) -> tuple[int | None, bool]:
    """Finds a record in data that begin anywhere.

    An event can hold bytes that look like records, such as those of another event file. But these
    are not followed by records up to the end of the data.

    Args:
      data: The data.
      torn: Whether the last record may be incomplete.

    Returns:
      Where the first record starts that is followed by records up to the end, and True. If there is
      none, since the last record is damaged: where the longest run of records starts, or None if
      there is no record, and False.
    """
    at, first, longest = _next_record(data, 0), None, 0
    while at < len(data):
        end = _undamaged(data, at)[-1]
        if end == len(data) or (torn and _is_torn(data, end)):
            return at, True
        if end - at > longest:
            first, longest = at, end - at
        at = _next_record(data, end + 1)
    return first, False


def _is_torn(data: bytes, start: int) -> bool:
    """Whether an incomplete record starts here, or nothing but zeros."""
    return _record_end(data, start) is not None or not data[start:].strip(b"\0")


def _next_record(data: bytes, start: int) -> int:
    """Where the first record at or after a position starts; the end of the data without one."""
    size = 1 << 12  # it is often near
    while start <= len(data) - _HEADER:
        part = np.frombuffer(data[start : start + size + _HEADER - 1], np.uint8)
        found = np.flatnonzero(_is_header(np.lib.stride_tricks.sliding_window_view(part, _HEADER)))
        if found.size:
            return start + int(found[0])
        start, size = start + size, min(2 * size, _CHUNK)
    return len(data)


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
