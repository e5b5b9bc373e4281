"""Removes the log records that a resumed run is going to write again.

    truncation = LogTruncation(split_window, record_names, event_windows)
    truncation.start(path, [path], step=100)
    truncation.finish(step=200)

A run that was killed at step 150 and resumes from the checkpoint of step 100 repeats the logs of
the steps in between. Without truncation they would be in the log twice. Host code, shared by the
writers.

The log of a long run may have gigabytes, and what is repeated is at its end. So a file that can be
divided into windows is read backwards, until a window has nothing to remove.
"""

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

from tfloss.common.replacement import (
    copy_aside,
    cut_file,
    remove_leftovers,
    replacement,
    set_aside,
)
from tfloss.errors import WorkdirError

# Splits the content of a file into its complete records and their steps. What the hook didn't
# write, or can't be read, has the step None.
SplitRecords = Callable[[bytes], Iterable[tuple[bytes, int | None]]]
# Yields where windows of an open file begin, from the last one to the first. Windows hold complete
# records. A file that the hook didn't write has none.
FindWindows = Callable[[BinaryIO], Iterable[int]]
# Returns the names of the values in a record.
RecordNames = Callable[[bytes], Iterable[str]]
# `{step: names}` of values that are logged again, although their step is not repeated.
Pending = Mapping[int, Collection[str]]
_COPIED = 1 << 20  # bytes that are copied at once


class LogTruncation:
    """Truncates the files of one writer, unless a run continues what the writer wrote. Host.

    A second `train` call that continues where the first ended doesn't read them.

    Args:
      split: Function that splits the content of a file into complete records and their steps.
      names: Function that returns the names of the values in a record.
      windows: Function that finds the windows of a file. None: a file is read as a whole.
    """

    def __init__(
        self,
        split: SplitRecords,
        names: RecordNames = lambda record: (),
        windows: FindWindows | None = None,
    ):
        self._split, self._names, self._windows = split, names, windows
        self._written: tuple[Path, int] | None = None  # location, and the last step in it

    def start(
        self,
        location: Path,
        files: Iterable[Path],
        step: int,
        pending: Pending | None = None,
        *,
        keep: bool = False,
    ) -> None:
        """Truncates the files at the start of a run, see `truncate_after`.

        Args:
          location: File or directory of the writer.
          files: The files to truncate. They may be missing.
          step: Step at which the run starts.
          pending: `{step: names}` of values up to that step that the run is still to log.
          keep: Whether to keep a copy of a file with later records.

        Raises:
          WorkdirError: A file can't be read or replaced.
        """
        if self._written != (location, step):
            self._written = None  # until all files are truncated
            for path in files:
                remove_leftovers(path.parent)
                try:
                    truncate_after(
                        path, step, self._split, pending, self._names, self._windows, keep=keep
                    )
                except OSError as error:  # a full disk
                    raise WorkdirError(
                        f"What the run repeats, after step {step}, can't be removed from {path}: "
                        f"{error.strerror or error}. Otherwise it would be there twice. Make room, "
                        "or move the file away."
                    ) from None
            self._written = (location, step)

    def finish(self, step: int) -> None:
        """Records the step at which a run ended, if `start` succeeded.

        Args:
          step: The last step of the run.
        """
        if self._written is not None:
            self._written = (self._written[0], step)


def truncate_after(
    path: Path,
    step: int,
    split: SplitRecords,
    pending: Pending | None = None,
    names: RecordNames = lambda record: (),
    windows: FindWindows | None = None,
    *,
    keep: bool = False,
) -> None:
    """Removes the records of later steps from a file, atomically. All other bytes stay.

    At step 0 it is unknown whether the run repeats them: somebody may have deleted the checkpoints.
    So the file is renamed to `superseded.<name>`, and nothing is lost.

    Args:
      path: The file. It may be missing.
      step: Last step whose records stay.
      split: Function that splits the content into complete records and their steps. A record that
        a killed process left incomplete at the end is not among them. Records of step None stay.
      pending: `{step: names}` of values of earlier steps that are logged again. A record with one
        of them is removed too.
      names: Function that returns the names of the values in a record.
      windows: Function that finds the windows of the file. Windows before one that has nothing to
        remove are not read. None: the file is read as a whole.
      keep: Whether to copy a file with later records to `superseded.<name>` first.

    Raises:
      OSError: The file can't be read or replaced.
    """
    if not path.exists():
        return
    again = pending or {}

    def stays(record: bytes, at: int | None) -> bool:
        if at is None:
            return True
        return at <= step and not (at in again and set(again[at]).intersection(names(record)))

    earliest = min((*again, step + 1))  # what was logged before needn't be looked at
    with path.open("rb") as file:
        stop = size = os.fstat(file.fileno()).st_size
        begin, tail, rest = size, b"", b""  # all bytes from `begin` on become `tail`
        later = False
        for start in windows(file) if windows else [0]:
            file.seek(start)
            content = file.read(stop - start)
            records = list(split(content))
            if stop < size:  # what is left out is incomplete only at the end of the file
                records.append((content[sum(len(record) for record, _ in records) :], None))
            kept = b"".join(record for record, record_step in records if stays(record, record_step))
            rest = kept + rest
            if kept != content:
                later = later or any((record_step or 0) > step for _, record_step in records)
                if step == 0 and later:
                    set_aside(path)
                    return
                begin, tail = start, rest
            elif any(at is not None and at < earliest for _, at in records):
                break
            stop = start
        if begin < size:
            if keep and later:
                copy_aside(path)
            _replace_end(path, file, begin, tail)


def _replace_end(path: Path, file: BinaryIO, begin: int, tail: bytes) -> None:
    """Replaces all bytes of a file from `begin` on, without a copy if it need only be cut."""
    file.seek(begin)
    if file.read(len(tail)) == tail:
        cut_file(path, begin + len(tail))
        return
    with replacement(path) as new:
        with new.path.open("wb") as copy:
            file.seek(0)
            for start in range(0, begin, _COPIED):
                copy.write(file.read(min(_COPIED, begin - start)))
            copy.write(tail)
        shutil.copymode(path, new.path)
        new.commit()
