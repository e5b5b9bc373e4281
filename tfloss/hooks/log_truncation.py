"""Removes the log records that a resumed run is going to write again.

    truncation = LogTruncation(split_records, record_names)
    truncation.start(path, [path], step=100)
    truncation.finish(step=200)

A run that was killed at step 150 and resumes from the checkpoint of step 100 repeats the logs of
the steps in between. Without truncation they would be in the log twice. Host code, shared by the
writers.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from tfloss.common.replacement import remove_leftovers, replace_file, set_aside
from tfloss.errors import WorkdirError

# Splits the content of a file into its complete records and their steps. What the hook didn't
# write, or can't be read, has the step None.
SplitRecords = Callable[[bytes], Iterable[tuple[bytes, int | None]]]
# Returns the names of the values in a record.
RecordNames = Callable[[bytes], Iterable[str]]
# `{step: names}` of values that are logged again, although their step is not repeated.
Pending = Mapping[int, Collection[str]]


class LogTruncation:
    """Truncates the files of one writer, unless a run continues what the writer wrote. Host.

    Reading the log of a long run takes long, so a second `train` call that continues where the
    first ended doesn't read it.

    Args:
      split: Function that splits the content of a file into complete records and their steps.
      names: Function that returns the names of the values in a record.
    """

    def __init__(self, split: SplitRecords, names: RecordNames = lambda record: ()):
        self._split, self._names = split, names
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
                    truncate_after(path, step, self._split, pending, self._names, keep=keep)
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
      keep: Whether to copy a file with later records to `superseded.<name>` first.

    Raises:
      OSError: The file can't be read or replaced.
    """
    if not path.exists():
        return
    content = path.read_bytes()
    records = list(split(content))
    again = pending or {}

    def stays(record: bytes, at: int | None) -> bool:
        if at is None:
            return True
        return at <= step and not (at in again and set(again[at]).intersection(names(record)))

    kept = b"".join(record for record, record_step in records if stays(record, record_step))
    if kept == content:
        return
    later = any((record_step or 0) > step for _, record_step in records)
    if step == 0 and later:
        set_aside(path)
        return
    replace_file(path, kept, is_own=lambda old: not (keep and later))
