"""Writes scalars and summaries as TensorBoard event files.

    TensorBoard()                                      # workdir/train

Then `tensorboard --logdir runs/digits`, or a directory above it to compare runs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from tfloss.hooks.base import Hook
from tfloss.hooks.every import Every

if TYPE_CHECKING:
    from tfloss.summary import Summary


class TensorBoard(Hook):
    """One event file a run, made at the first log. Host.

    A tag is the name that was logged, so `val/accuracy` lies in the same run as
    `losses/total`. Events are on disk within about `flush_secs`, and at the end.

    Args:
      logdir: instead of `workdir/train`.
      flush_secs: the most time between an event and the disk, if calls of the training step
        are shorter than that.
    """

    chief_only = True

    def __init__(self, logdir: str | Path | None = None, *, flush_secs: float = 5.0):
        self.every = Every(secs=flush_secs)
        self._given = logdir
        self._writer: Any = None
        self._unflushed = False
        self._ended = False

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
        _ = self.logdir  # fails now rather than at the first log

    def on_log(self, step, scalars, summaries: Sequence["Summary"]) -> None:
        if not scalars and not summaries:
            return
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(str(self.logdir))
        # Whatever the caller is inside of: tags without its name scopes, nothing left out by
        # its record_if, and no trip to an accelerator to make a histogram.
        with (
            self._writer.as_default(step),
            tf.summary.record_if(True),
            tf.name_scope(""),
            tf.device("CPU:0"),
        ):
            for name, value in scalars.items():
                tf.summary.scalar(name, value, step=step)
            for summary in summaries:
                _write(summary, step)
        self._unflushed = True
        if self._ended:  # a hook after us in the list logs at the end
            self._close()

    def after_call(self, step: int) -> None:
        if self._unflushed:
            self._writer.flush()
            self._unflushed = False

    def after_train(self) -> None:
        self._ended = True
        self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._unflushed = False


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
