"""Writes scalars and summaries to TensorBoard event files.

    TensorBoard()                                      # workdir/train, workdir/val, ...

View them with `tensorboard --logdir runs/digits`, or with the parent directory to compare runs.
"""

import dataclasses
import time
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from tfloss.hooks.base import Hook
from tfloss.hooks.evaluate import Evaluate
from tfloss.hooks.event_log import MAX_BYTES, EventLog
from tfloss.hooks.every import Every
from tfloss.hooks.output_path import output_path
from tfloss.hooks.run_description import (
    DESCRIPTION_TAGS,
    description_events,
    inspection_event,
)
from tfloss.hooks.tensorboard_tags import TRAIN, TensorBoardRuns, may_be_run
from tfloss.hooks.write_errors import WriteErrors
from tfloss.summary import Summary

_FLUSH_BYTES = 2**24  # events in memory


class TensorBoard(Hook, own=True):
    """Writes event files, in a directory for training and one for each `Evaluate` hook. Host.

    What `Evaluate(name="val")` logs is in `workdir/val`, without its prefix. So `losses/total` of
    training and `val/losses/total` have one tag, and share a chart. In TensorBoard, losses are in
    the group `Losses`, scalars without a group in `Metrics`, and learning rates, norms, speeds and
    times in `Training`. `metrics.jsonl`, hooks and trackers have the names as logged.

    The run `train` also has the texts `recipe`, `command` and `inspect`. The last one has what each
    run shows at its start, the weights of the losses, and all variables; `tfloss inspect` tells
    more. Each run has the hyperparameters: the tab HPARAMS has a row for each, with the last values
    of its curves.

    There is one file for each run and call of `train`, created at the first log. Events reach
    the file within about `flush_seconds`, at the end, and before a checkpoint is written. A
    resumed run first removes the events of the steps that it repeats.

    Args:
      logdir: Directory of the event files, instead of `workdir/train`. Evaluations are in
        directories inside of it then. No other run may use it.
      flush_seconds: Longest time until an event is in the file, if the calls of the training step
        are shorter.
    """

    chief_only = True
    async_logs = True

    def __init__(self, logdir: str | Path | None = None, *, flush_seconds: float = 5.0):
        self.every = Every(seconds=flush_seconds)
        self._logdir = logdir
        self._runs = TensorBoardRuns()
        self._logs: dict[Path, EventLog] = {}
        self._log_of: dict[str, EventLog] = {}  # by run; paths take long for each value
        self._errors = WriteErrors(
            self, "The curves", f"The last {MAX_BYTES >> 20} MB are kept, and written later."
        )
        self._ended = False
        self._undescribed: set[str] = set()  # runs that don't have their hyperparameters yet
        self._uninspected = False  # whether the text of that name is still to come

    @property
    def logdir(self) -> Path:
        """The directory of the event files of training.

        Raises:
          ValueError: There is neither a logdir nor a workdir.
        """
        return output_path(self, self._logdir, TRAIN, "TensorBoard(logdir)")

    def before_train(self) -> None:
        """Removes the events of the steps that the run repeats.

        Raises:
          WorkdirError: A directory or an event file in it can't be read and written.
        """
        self._ended = False
        run, parent = self.trainer.run, self._parent
        names = [hook.name for hook in self.trainer.hooks if isinstance(hook, Evaluate)]
        self._runs = TensorBoardRuns(names)
        # A file that an earlier version wrote has the names as tags.
        again = {step: {*names, *self._tags(names)} for step, names in run.pending.items()}
        again[run.start] = {*again.get(run.start, ()), *DESCRIPTION_TAGS}
        self._log(TRAIN).truncate(run.start, again, keep=run.rewound)
        parent.mkdir(parents=True, exist_ok=True)
        found = {path.parent.name for path in parent.glob("*/*tfevents*")}
        for name in sorted({*self._runs.names, *filter(may_be_run, found)}):
            described = {run.start: DESCRIPTION_TAGS}
            self._log(name).truncate(run.start, described, keep=run.rewound)
        self._undescribed = {TRAIN, *self._runs.names}
        self._uninspected = True

    def before_save(self, step: int) -> None:
        """Flushes the files, so that a checkpoint is never newer than the log."""
        self.after_step(step)

    def on_log(self, step: int, scalars: Mapping[str, float], summaries: Sequence[Summary]) -> None:
        """Keeps scalars and summaries until the next flush."""
        now = time.time()
        by_run: dict[str, dict[str, float]] = {}
        for name, value in scalars.items():
            run, tag = self._runs.place(name)
            # Converted here, so that a value that is no number fails where it is logged.
            by_run.setdefault(run, {})[tag] = float(value)
        self._inspect(scalars, now)
        for run, values in by_run.items():
            self._described(run, now).add_scalars(step, now, values)
        for summary in summaries:
            run, tag = self._runs.split(summary.name)
            self._described(run, now).add_summary(step, now, dataclasses.replace(summary, name=tag))
        if sum(log.bytes for log in self._logs.values()) >= _FLUSH_BYTES:
            if not self._errors.failing:
                self.after_step(step)
        if self._ended:  # a hook after this one in the list logs at the end
            self._close()

    def after_step(self, step: int) -> None:
        """Writes what is pending and flushes the files."""
        if any(self._logs.values()):
            self._errors.survive(self._write)

    def after_train(self) -> None:
        """Closes the files. A later log opens others."""
        self._ended = True
        for log in self._logs.values():
            log.finish(self.trainer.step)
        self._close()
        for log in self._logs.values():
            if log:
                warnings.warn(
                    f"Training ended without {len(log)} events of {log.directory}, which could "
                    "not be written.",
                    stacklevel=2,
                )

    @property
    def _parent(self) -> Path:
        """The directory of the directories of evaluations."""
        return self.logdir if self._logdir is not None else self.logdir.parent

    def _log(self, run: str) -> EventLog:
        """Returns the log of a run by its name."""
        if run not in self._log_of:
            path = self.logdir if run == TRAIN else self._parent / run
            self._log_of[run] = self._logs.setdefault(path, EventLog(path))
        return self._log_of[run]

    def _tags(self, names: Collection[str]) -> list[str]:
        return [self._runs.place(name)[1] for name in names]

    def _described(self, run: str, now: float) -> EventLog:
        """Returns the log of a run, which says what the run is: once in a call of `train`."""
        log = self._log(run)
        if run in self._undescribed:
            self._undescribed.remove(run)
            start, texts = self.trainer.run.start, run == TRAIN
            for event in description_events(self.trainer, log.directory, start, now, texts=texts):
                log.add_event(event)
        return log

    def _inspect(self, scalars: Mapping[str, float], now: float) -> None:
        """Adds the text `inspect`, once in a call of `train`, when the losses are known."""
        losses = [name.removeprefix("losses/") for name in scalars if name.startswith("losses/")]
        if self._uninspected and losses:
            self._uninspected = False
            event = inspection_event(self.trainer, losses, self.trainer.run.start, now)
            self._described(TRAIN, now).add_event(event)

    def _write(self) -> None:
        """Writes the events of all runs. If some can't be written, those of the others are."""
        failure: OSError | None = None
        for log in self._logs.values():
            try:
                log.write()
            except OSError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _close(self) -> None:
        self.after_step(self.trainer.step)
        for log in self._logs.values():
            self._errors.survive(log.close)
