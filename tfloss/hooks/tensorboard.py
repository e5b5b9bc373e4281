"""Writes scalars and summaries as TensorBoard event files.

    TensorBoard()                                      # workdir/train

Then `tensorboard --logdir runs/digits`, or a directory above it to compare runs.
"""

import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from tfloss import _upstream
from tfloss.hooks._superseded import keep_until
from tfloss.hooks.base import Hook
from tfloss.hooks.every import Every

if TYPE_CHECKING:
    from tfloss.summary import Summary


_MOST_WAITING = 1000  # logs that wait to be written


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
        self._writer: Any = None
        self._waiting: list[tuple[int, float, dict[str, float]]] = []
        self._ended = False
        self._written: tuple[Path, int] | None = None  # where, and up to which step
        self._events: dict[tuple[str, ...], _ScalarEvent] = {}  # by names

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
                keep_until(path, self.trainer.run.start, _events)
            self._written = written

    def before_save(self, step: int) -> None:
        self.after_step(step)

    def on_log(self, step, scalars, summaries: Sequence["Summary"]) -> None:
        self._add(step, scalars)
        if summaries:
            self._write_out()
            # Whatever the caller is inside of: tags without its name scopes, nothing left out by
            # its record_if, and no trip to an accelerator to make a histogram.
            with (
                self._open().as_default(step),
                tf.summary.record_if(True),
                tf.name_scope(""),
                tf.device("CPU:0"),
            ):
                for summary in summaries:
                    _write(summary, step)
        self._end_if_ended()

    def after_step(self, step: int) -> None:
        self._write_out()
        if self._writer is not None:
            self._writer.flush()

    def after_train(self) -> None:
        self._ended = True
        if self._written is not None:
            self._written = (self.logdir, self.trainer.step)
        self._end_if_ended()

    def _add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Keeps scalars to be written."""
        if scalars:  # numbers from here on: what isn't one is to fail where it is logged
            self._waiting.append((step, time.time(), {k: float(v) for k, v in scalars.items()}))
        if len(self._waiting) >= _MOST_WAITING:
            self._write_out()

    def _end_if_ended(self) -> None:
        """After the end, too, a hook after us in the list may log."""
        if self._ended:
            self._write_out()
            self._close()

    def _write_out(self) -> None:
        """Writes the scalars that wait, an event a step.

        Together, since between two calls of the training step, when nothing of it is in the
        processor's caches, a single event takes ten times as long.
        """
        if self._waiting:
            events = [self._serialised(*one) for one in self._waiting]
            self._waiting = []
            _upstream.write_events(self._open(), events)

    def _serialised(self, step: int, now: float, scalars: Mapping[str, float]) -> bytes:
        names = tuple(scalars)
        if names not in self._events:
            self._events[names] = _ScalarEvent(names)
        return self._events[names].serialised(step, now, scalars.values())

    def _open(self) -> Any:
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(str(self.logdir))
        return self._writer

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _events(data: bytes) -> Iterator[tuple[bytes, int]]:
    """The whole records of an event file (a TFRecord file), and the step of each."""
    start = 0
    while start + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, start)  # length, its checksum, event, checksum
        end = start + 12 + length + 4
        if not length or end > len(data):
            return
        try:
            step = tf.compat.v1.Event.FromString(data[start + 12 : end - 4]).step
        except Exception:  # protobuf's DecodeError: damaged, and readers pass it over
            step = 0
        yield data[start:end], step
        start = end


class _ScalarEvent:
    """The scalars of a log in one protocol buffer, each as the plain number that TensorBoard
    takes for one of `tf.summary.scalar`, whose tensors take twice as long to write.

    It is filled anew for each step, since to make it takes ten times as long.
    """

    def __init__(self, names: tuple[str, ...]):
        self._event = tf.compat.v1.Event()
        self._values = [self._event.summary.value.add(tag=name) for name in names]

    def serialised(self, step: int, now: float, values: Iterable[float]) -> bytes:
        self._event.step, self._event.wall_time = step, now
        for one, value in zip(self._values, values, strict=True):
            one.simple_value = value
        return self._event.SerializeToString()


def _write(summary: "Summary", step: int) -> None:
    name, value, options = summary.name, summary.value, summary.options
    if summary.kind == "histogram":
        tf.summary.histogram(name, value, step=step, buckets=options.get("buckets"))
    elif summary.kind == "image":
        # The value holds what the user asked for; TensorFlow would show three of them.
        shown = options.get("max_outputs") or max(len(value), 1)
        tf.summary.image(name, value, step=step, max_outputs=shown)
    elif summary.kind == "text":
        tf.summary.text(name, value, step=step)
    elif summary.kind == "raw":
        tf.summary.write(name, value, step=step, metadata=options["metadata"])
    else:
        raise ValueError(
            f"Summary {name!r} has the kind {summary.kind!r}; TensorBoard can write "
            "'histogram', 'image', 'text' and 'raw'."
        )
