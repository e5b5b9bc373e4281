"""Writes scalars and summaries as TensorBoard event files.

    TensorBoard()                                      # workdir/train

Then `tensorboard --logdir runs/digits`, or a directory above it to compare runs.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tfloss.hooks._superseded import keep_until
from tfloss.hooks.base import Hook
from tfloss.hooks.event_file import EventFileWriter, split_records
from tfloss.hooks.event_protos import ScalarEvents, summary_event
from tfloss.hooks.every import Every
from tfloss.summary import Summary

_MAX_PENDING = 1000  # logs in memory


class TensorBoard(Hook):
    """One event file a run, made at the first log. Host.

    A tag is the name that was logged, so `val/accuracy` lies in the same run as
    `losses/total`. Events are on disk within about `flush_seconds`, at the end, and before a
    checkpoint is written. A resumed run takes out first what is of steps after the checkpoint it
    goes on from, since it repeats these.

    Args:
      logdir: instead of `workdir/train`; of this run alone.
      flush_seconds: the most time between an event and the disk, if calls of the training step
        are shorter than that.
    """

    chief_only = True
    async_logs = True

    def __init__(self, logdir: str | Path | None = None, *, flush_seconds: float = 5.0):
        self.every = Every(seconds=flush_seconds)
        self._given = logdir
        self._file: EventFileWriter | None = None
        self._scalar_events = ScalarEvents()
        self._pending: list[tuple[int, float, dict[str, float]]] = []  # step, time, scalars
        self._ended = False
        self._written: tuple[Path, int] | None = None  # where, and up to which step

    @property
    def logdir(self) -> Path:
        """Where it writes. Raises ValueError without a workdir."""
        if self._given is not None:
            return Path(self._given)
        if self.trainer.workdir is None:
            raise ValueError(
                "TensorBoard has nowhere to write: give the Trainer a workdir, or "
                "TensorBoard(logdir)."
            )
        return Path(self.trainer.workdir) / "train"

    def before_train(self) -> None:
        self._ended = False
        written = (self.logdir, self.trainer.run.start)
        if self._written != written:
            self._written = None  # until all is as it should be
            for path in sorted(self.logdir.glob("*tfevents*")):
                keep_until(path, self.trainer.run.start, split_records)
            self._written = written

    def before_save(self, step: int) -> None:
        self.after_step(step)

    def on_log(self, step: int, scalars: Mapping[str, float], summaries: Sequence[Summary]) -> None:
        now = time.time()
        if scalars:  # converted here, so that a value that is no number fails where it is logged
            self._pending.append((step, now, {name: float(v) for name, v in scalars.items()}))
        if summaries or len(self._pending) >= _MAX_PENDING:
            self._write_pending()
        for summary in summaries:
            self._write(summary_event(step, now, summary))
        if self._ended:  # a hook after this one in the list logs at the end
            self._close()

    def after_step(self, step: int) -> None:
        self._write_pending()
        if self._file is not None:
            self._file.flush()

    def after_train(self) -> None:
        self._ended = True
        if self._written is not None:
            self._written = (self.logdir, self.trainer.step)
        self._close()

    def _write_pending(self) -> None:
        """Writes the scalars that wait, one event a log.

        They are written together because a single event, between two calls of the training step
        that have filled the processor's caches, takes ten times as long.
        """
        pending, self._pending = self._pending, []
        for log in pending:
            self._write(self._scalar_events.serialized(*log))

    def _write(self, event: bytes) -> None:
        """Appends an event; the first one opens the file."""
        if self._file is None:
            self._file = EventFileWriter(self.logdir)
        self._file.write(event)

    def _close(self) -> None:
        self._write_pending()
        if self._file is not None:
            file, self._file = self._file, None
            file.close()
