"""Writes the logged scalars to a JSON Lines file, for tools other than TensorBoard.

    MetricsFile()                                      # workdir/metrics.jsonl
    # {"step": 100, "time": 1760000000.25, "losses/total": 0.43, "learning_rate": 0.001}
    pandas.read_json("runs/digits/metrics.jsonl", lines=True)

It writes a line for each log, without a buffer.
"""

import collections
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from tfloss.common.reading import check_file
from tfloss.hooks.appended_file import AppendedFile
from tfloss.hooks.base import Hook
from tfloss.hooks.log_truncation import LogTruncation
from tfloss.hooks.output_path import output_path
from tfloss.hooks.write_errors import WriteErrors
from tfloss.summary import Summary

_RESERVED = ("step", "time")
WINDOW = 1 << 22  # bytes of the file that are read at once for a resumed run
_BLOCK = 1 << 16  # bytes that are searched at once for the end of a line
_BEGIN = b'{"step": '
_MAX_LINES = 10_000  # in memory, while the disk is full
_encode = json.JSONEncoder(allow_nan=False).encode  # json.dumps makes one for each call


class MetricsFile(Hook, own=True):
    """Appends one JSON line for each log that has scalars, readable at once. Host.

    JSON has no NaN or infinity. They are the strings "nan", "inf" and "-inf", which Python's
    `float` reads. While the disk is full and `SaveCheckpoint(on_error="continue")` lets the run
    continue, lines are kept in memory.

    A resumed run first removes the lines of the steps that it repeats, then appends. The repeated
    lines are the same, except for fields that depend on time.

    Args:
      path: Path of the file, instead of `workdir/metrics.jsonl`.
      clock: Function that returns the field `time`, in seconds since 1970. Tests can replace it.
    """

    chief_only = True
    async_logs = True

    def __init__(self, path: str | Path | None = None, *, clock: Callable[[], float] = time.time):
        self._path = path
        self._clock = clock
        self._file: AppendedFile | None = None
        self._lines: collections.deque[bytes] = collections.deque()  # not written yet
        self._errors = WriteErrors(
            self, "The metrics file", f"The last {_MAX_LINES:,} lines are kept, and written later."
        )
        self._ended = False
        self._truncation = LogTruncation(_split_lines, _line_names, line_windows)

    @property
    def path(self) -> Path:
        """The path of the file.

        Raises:
          ValueError: There is neither a path nor a workdir.
        """
        return output_path(self, self._path, "metrics.jsonl", "MetricsFile(path)")

    def before_train(self) -> None:
        """Removes the lines of the steps that the run repeats.

        Raises:
          WorkdirError: The path is a link or no regular file, or it can't be read and written.
        """
        self._ended = False
        check_file(self.path, links=False)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        run = self.trainer.run
        self._truncation.start(self.path, [self.path], run.start, run.pending, keep=run.rewound)

    def before_save(self, step: int) -> None:
        """Flushes the file to the disk, so that a checkpoint is never newer than the log."""
        if self._file is not None:
            self._errors.survive(lambda: self._write(sync=True))

    def on_log(self, step: int, scalars: Mapping[str, float], summaries: Sequence[Summary]) -> None:
        """Appends a line.

        Raises:
          ValueError: A scalar is named "step" or "time", or is not a number.
        """
        if not scalars:
            return
        self._lines.append(self._line(step, scalars).encode())
        self._errors.survive(self._write)
        if len(self._lines) > _MAX_LINES:
            self._lines.popleft()
        if self._ended:  # a hook after this one in the list logs at the end
            self._close()

    def after_train(self) -> None:
        """Closes the file. A later log opens it again."""
        self._ended = True
        self._truncation.finish(self.trainer.step)
        if self._lines:
            self._errors.survive(self._write)
        if self._lines:
            warnings.warn(
                f"Training ended without {len(self._lines)} lines of {self.path}, which could not "
                "be written.",
                stacklevel=2,
            )
        self._close()

    def _line(self, step: int, scalars: Mapping[str, float]) -> str:
        for name in _RESERVED:
            if name in scalars:
                raise ValueError(
                    f"A scalar is named {name!r}, which is a field of MetricsFile. Log it under "
                    f"another name, such as 'my_{name}'."
                )
        record = {"step": int(step), "time": self._clock()}
        record |= {name: _json_number(value) for name, value in scalars.items()}
        return _encode(record) + "\n"

    def _write(self, *, sync: bool = False) -> None:
        file = self._file = self._file or AppendedFile(self.path)
        if self._lines:
            file.append(b"".join(self._lines))
        self._lines.clear()
        if sync:
            file.sync()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _json_number(value: float) -> float | str:
    value = float(value)
    return value if math.isfinite(value) else str(value)


def _line_names(line: bytes) -> Iterable[str]:
    """Returns the names of the values in a line."""
    return set(json.loads(line)).difference(_RESERVED)


def _split_lines(content: bytes) -> Iterator[tuple[bytes, int | None]]:
    """Yields the lines with their steps. A line of somebody else has the step None.

    An incomplete last line of this hook is left out. That of somebody else gets its line break, so
    that the next line is not appended to it.
    """
    for line in content.splitlines(keepends=True):
        if line.endswith(b"\n"):
            yield line, _step(line)
        elif not (line.startswith(_BEGIN) or _BEGIN.startswith(line)):
            yield line + b"\n", None


def line_windows(file: BinaryIO) -> Iterator[int]:
    """Yields the beginnings of lines every 4 MB or so, from the last to the first.

    Args:
      file: The open file.
    """
    stop = os.fstat(file.fileno()).st_size
    for target in range((stop - 1) // WINDOW * WINDOW, 0, -WINDOW):
        if target < stop and (at := _line_end(file, target - WINDOW, target)) > target - WINDOW:
            yield at
            stop = at
    yield 0


def _line_end(file: BinaryIO, start: int, stop: int) -> int:
    """Returns where the last line that ends between two positions ends, or `start`."""
    while stop > start:
        begin = max(start, stop - _BLOCK)
        file.seek(begin)
        if (place := file.read(stop - begin).rfind(b"\n")) >= 0:
            return begin + place + 1
        stop = begin
    return start


def _step(line: bytes) -> int | None:
    """The step of a complete line that this hook wrote, else None."""
    try:
        record = json.loads(line)
        step, at = record["step"], record["time"]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None
    ours = line.startswith(_BEGIN) and type(step) is int and isinstance(at, int | float)
    return step if ours else None
