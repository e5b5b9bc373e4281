"""Writes scalars and summaries to TensorBoard event files.

    TensorBoard()                                      # workdir/train

View them with `tensorboard --logdir runs/digits`, or with the parent directory to compare runs.
"""

import collections
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from tfloss.common.reading import check_directory, check_file
from tfloss.hooks.base import Hook
from tfloss.hooks.event_file import EventFileWriter
from tfloss.hooks.event_protos import ScalarEvents, summary_event
from tfloss.hooks.event_records import event_windows, record_names, split_window
from tfloss.hooks.every import Every
from tfloss.hooks.log_truncation import LogTruncation
from tfloss.hooks.output_path import output_path
from tfloss.hooks.write_errors import WriteErrors
from tfloss.summary import Summary

_MAX_PENDING = 1000  # logs in memory
_FLUSH_BYTES, _MAX_BYTES = 2**24, 2**26  # events in memory, and those while the disk is full


class TensorBoard(Hook):
    """Writes one event file for each run, created at the first log. Host.

    The tag is the logged name, so `val/accuracy` is in the same run as `losses/total`. Events reach
    the file within about `flush_seconds`, at the end, and before a checkpoint is written. A
    resumed run first removes the events of the steps that it repeats.

    Args:
      logdir: Directory of the event files, instead of `workdir/train`. No other run may use it.
      flush_seconds: Longest time until an event is in the file, if the calls of the training step
        are shorter.
    """

    chief_only = True
    async_logs = True

    def __init__(self, logdir: str | Path | None = None, *, flush_seconds: float = 5.0):
        self.every = Every(seconds=flush_seconds)
        self._logdir = logdir
        self._file: EventFileWriter | None = None
        self._scalar_events = ScalarEvents()
        self._pending: list[tuple[int, float, dict[str, float]]] = []  # step, time, scalars
        self._events: collections.deque[bytes] = collections.deque()  # not flushed yet
        self._bytes = 0  # of these events
        self._errors = WriteErrors(
            self, "The curves", f"The last {_MAX_BYTES >> 20} MB are kept, and written later."
        )
        self._ended = False
        self._truncation = LogTruncation(split_window, record_names, event_windows)

    @property
    def logdir(self) -> Path:
        """The directory of the event files.

        Raises:
          ValueError: There is neither a logdir nor a workdir.
        """
        return output_path(self, self._logdir, "train", "TensorBoard(logdir)")

    def before_train(self) -> None:
        """Removes the events of the steps that the run repeats.

        Raises:
          WorkdirError: The directory or an event file in it can't be read and written.
        """
        self._ended = False
        logdir, run = self.logdir, self.trainer.run
        check_directory(logdir)
        logdir.parent.mkdir(parents=True, exist_ok=True)
        # tfloss makes no links, so a link leads to a file of somebody else.
        found = sorted(logdir.glob("*tfevents*"))
        files = [path for path in found if path.is_file() and not path.is_symlink()]
        for path in files:
            check_file(path)
        self._truncation.start(logdir, files, run.start, run.pending, keep=run.rewound)

    def before_save(self, step: int) -> None:
        """Flushes the file, so that a checkpoint is never newer than the log."""
        self.after_step(step)

    def on_log(self, step: int, scalars: Mapping[str, float], summaries: Sequence[Summary]) -> None:
        """Keeps scalars until the next flush, and writes summaries."""
        now = time.time()
        if scalars:  # converted here, so that a value that is no number fails where it is logged
            self._pending.append((step, now, {name: float(v) for name, v in scalars.items()}))
        if summaries or len(self._pending) >= _MAX_PENDING:
            self._serialize_pending()
        for summary in summaries:
            self._keep(summary_event(step, now, summary))
        if self._bytes >= _FLUSH_BYTES and not self._errors.failing:
            self.after_step(step)
        if self._ended:  # a hook after this one in the list logs at the end
            self._close()

    def after_step(self, step: int) -> None:
        """Writes the pending scalars and flushes the file."""
        self._serialize_pending()
        if self._events:
            self._errors.survive(self._write)

    def after_train(self) -> None:
        """Closes the file. A later log opens another one."""
        self._ended = True
        self._truncation.finish(self.trainer.step)
        self._close()
        if self._events:
            warnings.warn(
                f"Training ended without {len(self._events)} events of {self.logdir}, which could "
                "not be written.",
                stacklevel=2,
            )

    def _serialize_pending(self) -> None:
        """Makes events of the pending scalars, one for each log.

        They are made together because a single event takes ten times as long between two calls
        of the training step, which have filled the processor's caches.
        """
        pending, self._pending = self._pending, []
        for log in pending:
            self._keep(self._scalar_events.serialized(*log))

    def _keep(self, event: bytes) -> None:
        """Keeps an event until the next flush; while that fails, the newest events only."""
        self._events.append(event)
        self._bytes += len(event)
        while self._bytes > _MAX_BYTES and len(self._events) > 1:
            self._bytes -= len(self._events.popleft())

    def _write(self) -> None:
        """Writes all events, and flushes them. After an error the next call makes a new file."""
        try:
            if self._file is None:
                self._file = EventFileWriter(self.logdir)
            for event in self._events:
                self._file.write(event)
            self._file.flush()
        except OSError:
            if self._file is not None:
                self._file.abandon()
            self._file = None
            raise
        self._events.clear()
        self._bytes = 0

    def _close(self) -> None:
        self.after_step(self.trainer.step)
        if self._file is not None:
            file, self._file = self._file, None
            self._errors.survive(file.close)
