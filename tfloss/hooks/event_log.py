"""The event files of one run of TensorBoard: one directory, one file for each call of `train`.

    log = EventLog(Path("runs/digits/val"))
    log.truncate(step=100)                   # what a resumed run repeats
    log.add_scalars(200, time.time(), {"accuracy": 0.98})
    log.write()
    log.close()

Host code.
"""

import collections
from collections.abc import Collection, Mapping
from pathlib import Path

from tfloss.common.reading import check_directory, check_file
from tfloss.hooks.event_file import EventFileWriter
from tfloss.hooks.event_protos import ScalarEvents, summary_event
from tfloss.hooks.event_records import event_windows, record_names, split_window
from tfloss.hooks.log_truncation import LogTruncation
from tfloss.summary import Summary

MAX_BYTES = 2**26  # of the events in memory while the disk is full
_MAX_PENDING = 1000  # logs in memory


class EventLog:
    """Events of one directory, in memory until `write`. Host.

    Args:
      directory: The directory. It is created with the first file; its parent must exist.

    Attributes:
      directory: The argument.
      bytes: Size of the events in memory.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self.bytes = 0
        self._file: EventFileWriter | None = None
        self._scalar_events = ScalarEvents()
        # Step, time, and scalars or a histogram that was counted.
        self._pending: list[tuple[int, float, dict[str, float] | Summary]] = []
        self._events: collections.deque[bytes] = collections.deque()  # not flushed yet
        self._truncation = LogTruncation(split_window, record_names, event_windows)

    def __len__(self) -> int:
        """The number of events that are not in the file yet."""
        return len(self._events) + len(self._pending)

    def truncate(
        self, step: int, pending: Mapping[int, Collection[str]] | None = None, *, keep: bool = False
    ) -> None:
        """Removes the events of the steps that a run repeats, see `LogTruncation.start`.

        Args:
          step: Step at which the run starts.
          pending: `{step: tags}` of earlier values that the run writes again.
          keep: Whether to keep a copy of a file with later events.

        Raises:
          WorkdirError: The directory or an event file in it can't be read and written.
        """
        check_directory(self.directory)
        # tfloss makes no links, so a link leads to a file of somebody else.
        found = sorted(self.directory.glob("*tfevents*"))
        files = [path for path in found if path.is_file() and not path.is_symlink()]
        for path in files:
            check_file(path)
        self._truncation.start(self.directory, files, step, pending, keep=keep)

    def finish(self, step: int) -> None:
        """Records the step at which a run ended."""
        self._truncation.finish(step)

    def add_scalars(self, step: int, wall_time: float, scalars: dict[str, float]) -> None:
        """Adds the scalars of a step, `{tag: value}`, as one event."""
        self._add((step, wall_time, scalars))

    def add_summary(self, step: int, wall_time: float, summary: Summary) -> None:
        """Adds another summary as one event.

        Raises:
          ValueError: The kind of the summary is unknown.
        """
        if summary.options.get("counted"):  # a small table; there is one for each variable
            self._add((step, wall_time, summary))
        else:
            self.add_event(summary_event(step, wall_time, summary))

    def add_event(self, event: bytes) -> None:
        """Adds a serialized event."""
        self._serialize_pending()
        self._keep(event)

    def write(self) -> None:
        """Writes all events, and flushes them. After an error the next call makes a new file.

        Raises:
          OSError: They can't be written.
        """
        self._serialize_pending()
        if not self._events:
            return
        try:
            if self._file is None:
                self._file = EventFileWriter(self.directory)
            for event in self._events:
                self._file.write(event)
            self._file.flush()
        except OSError:
            if self._file is not None:
                self._file.abandon()
            self._file = None
            raise
        self._events.clear()
        self.bytes = 0

    def close(self) -> None:
        """Closes the file. A later `write` opens another one.

        Raises:
          OSError: The disk is full, or the file can't be written to any more.
        """
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def _add(self, log: tuple[int, float, dict[str, float] | Summary]) -> None:
        self._pending.append(log)
        if len(self._pending) >= _MAX_PENDING:
            self._serialize_pending()

    def _serialize_pending(self) -> None:
        """Makes events of the pending scalars and histograms, one for each log.

        They are made together because a single event takes ten times as long between two calls
        of the training step, which have filled the processor's caches.
        """
        pending, self._pending = self._pending, []
        for step, wall_time, values in pending:
            if isinstance(values, Summary):
                self._keep(summary_event(step, wall_time, values))
            else:
                self._keep(self._scalar_events.serialized(step, wall_time, values))

    def _keep(self, event: bytes) -> None:
        """Keeps an event until the next flush; while that fails, the newest events only."""
        self._events.append(event)
        self.bytes += len(event)
        while self.bytes > MAX_BYTES and len(self._events) > 1:
            self.bytes -= len(self._events.popleft())
