"""`--mode=eval --follow`: evaluates each new checkpoint of a run, beside its trainer. Host code.

What was evaluated is in `workdir/eval/metrics.jsonl`, one line for each checkpoint. TensorBoard's
event files beside it are written from these lines, so a process that is killed in between leaves
nothing out and repeats nothing.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfloss.checkpoint.files import CheckpointFiles
from tfloss.checkpoint.manifest import load_manifest
from tfloss.common.files import open_regular
from tfloss.common.replacement import replace_file
from tfloss.errors import CheckpointDeletedError, CheckpointError

if TYPE_CHECKING:
    from tfloss.data.distributed import Data
    from tfloss.hooks.event_file import EventFileWriter
    from tfloss.trainer.trainer import Trainer

DIRECTORY = "eval"
_WAIT, _DONE = -1, -2  # in place of a step
_POLL_SECONDS, _QUIET_SECONDS = 5.0, 600.0


def follow(
    trainer: "Trainer",
    train_data: "Data",
    evaluate: Callable[[], Mapping[str, float]],
    *,
    newest_first: bool = False,
    report: Callable[[str], Any] = print,
    wait: Callable[[float], Any] = time.sleep,
) -> dict[str, float]:
    """Evaluates each checkpoint in the trainer's workdir once, until the run has ended. Host code.

    The run has ended when its newest checkpoint is at the step that `train` was to reach, or was
    saved after a hook stopped training. A run that was killed is waited for. All workers of an
    evaluation on several workers must call this.

    Args:
      trainer: A trainer with the workdir of the run. It trains nothing.
      train_data: Batches as `Trainer.restore` takes them.
      evaluate: A function that evaluates the restored model and returns values by name.
      newest_first: Whether to evaluate the newest checkpoint next, and not the oldest one.
      report: A function that is given a line about each evaluation, on the first worker.
      wait: A function that waits some seconds until the next look for checkpoints.

    Returns:
      The values of the newest checkpoint that was evaluated, in this process or an earlier one
      (workers other than the first know only those of this process).

    Raises:
      CheckpointError: A checkpoint doesn't fit the model.
      WorkdirInUseError: Another process evaluates the run in this way.
    """
    from tfloss.trainer.workdir_lock import WorkdirLock

    assert trainer.workdir is not None and trainer.checkpoints is not None
    directory = trainer.workdir / DIRECTORY
    chief = trainer.agreement.chief
    if chief:
        directory.mkdir(exist_ok=True)
    with WorkdirLock(directory, trainer.agreement).training():
        record = EvaluationRecord(directory) if chief else None
        found, newest = dict[str, float](), 0
        pending = Pending(trainer.checkpoints, record, trainer.logger.info)
        while (step := _agreed(trainer, pending, newest_first)) != _DONE:
            if step == _WAIT:
                wait(_POLL_SECONDS)
                continue
            try:
                trainer.restore(train_data, step=step)
            except CheckpointDeletedError:
                continue  # the next look doesn't find it
            results = evaluate()
            if step >= newest:
                newest, found = step, dict(results)
            if record is not None:
                pending.evaluated(step, results)
                report(f"step {step}  " + "  ".join(f"val/{k} {v:.5g}" for k, v in results.items()))
        return found if record is None else record.newest()


def _agreed(trainer: "Trainer", pending: "Pending", newest_first: bool) -> int:
    """Returns what the first worker does next, on all workers: a step, `_WAIT` or `_DONE`."""
    own = pending.next(newest_first) if trainer.agreement.chief else _WAIT
    return int(trainer.agreement.agree([], [float(own)])[1][0])


class Pending:
    """The checkpoints that are still to be evaluated.

    Args:
      files: The checkpoints of the run.
      record: What was evaluated; None on workers that only take part.
      log: A function that is given messages for people.
      clock: A function that returns the time in seconds.
    """

    def __init__(
        self,
        files: CheckpointFiles,
        record: "EvaluationRecord | None",
        log: Callable[[str], Any],
        clock: Callable[[], float] = time.monotonic,
    ):
        self._files, self._record, self._log, self._clock = files, record, log, clock
        self._looked_at: dict[int, tuple[float, bool]] = {}  # modification time, is it the last
        self._weights: dict[int, str] = {}  # of the checkpoints to evaluate
        self._quiet_until = clock() + _QUIET_SECONDS

    def next(self, newest_first: bool) -> int:
        """Returns the step of the next checkpoint to evaluate, `_WAIT` or `_DONE`.

        Args:
          newest_first: Whether that is the newest one, and not the oldest.
        """
        steps = self._files.steps()
        for step in steps:
            self._look_at(step)
        for step in sorted(self._weights.keys() & set(steps), reverse=newest_first):
            problem = self._problem(step)
            if problem is None and self._weights[step]:
                self._quiet_until = self._clock() + _QUIET_SECONDS
                return step
            del self._weights[step]
            if not problem:
                self._looked_at.pop(step, None)  # deleted, or readable now
            else:
                self._log(f"Checkpoint {self._files.at(step)} is not evaluated: {problem}.")
        self._weights.clear()
        if steps and self._looked_at.get(steps[-1], (0.0, False))[1]:
            return _DONE
        if self._clock() > self._quiet_until:
            self._quiet_until = self._clock() + _QUIET_SECONDS
            newest = f"the newest is of step {steps[-1]}" if steps else "there is none"
            self._log(f"waiting for checkpoints in {self._files.path}; {newest}")
        return _WAIT

    def evaluated(self, step: int, results: Mapping[str, float]) -> None:
        """Records that a checkpoint was evaluated, with the results by name."""
        assert self._record is not None
        self._record.add(step, self._weights.pop(step), results)

    def _look_at(self, step: int) -> None:
        """Finds out whether a checkpoint was evaluated, and whether it is the last of the run."""
        assert self._record is not None
        path = self._files.at(step)
        try:
            changed = path.stat().st_mtime
        except OSError:
            return
        try:
            if self._looked_at.get(step, (None, False))[0] == changed:
                return
            manifest = load_manifest(path)
        except CheckpointDeletedError:
            return
        except CheckpointError:
            self._weights[step] = ""  # `_problem` says what is wrong
            self._looked_at[step] = changed, False
            return
        weights = _fingerprint(manifest)
        if self._record.weights_of(step) != weights:
            self._weights[step] = weights
        self._looked_at[step] = changed, _ends_run(manifest)

    def _problem(self, step: int) -> str | None:
        """Returns what is wrong with a checkpoint: "" if it was deleted, None if nothing is."""
        try:
            return self._files.problem(step)
        except CheckpointDeletedError:
            return ""


class EvaluationRecord:
    """The results of the checkpoints that were evaluated, on the disk.

    Args:
      directory: The directory of `metrics.jsonl` and the event files.
    """

    def __init__(self, directory: Path):
        self._directory, self._path = directory, directory / "metrics.jsonl"
        self._lines: dict[int, dict[str, Any]] = {}
        self._file: EventFileWriter | None = None
        content = self._path.read_bytes() if self._path.exists() else b""
        complete = content.rfind(b"\n") + 1
        if complete < len(content):  # a killed process has written a part of a line
            replace_file(self._path, content[:complete])
        for line in content[:complete].splitlines():
            if (record := _own_record(line)) is not None:
                self._lines[record["step"]] = record
        there = self._event_steps()
        self._write_events([one for step, one in self._lines.items() if step not in there])

    @property
    def steps(self) -> Collection[int]:
        """The steps of the checkpoints that were evaluated."""
        return self._lines.keys()

    def weights_of(self, step: int) -> str | None:
        """Returns the fingerprint of the weights that were evaluated at a step, or None."""
        return self._lines[step]["weights"] if step in self._lines else None

    def newest(self) -> dict[str, float]:
        """Returns the results of the highest step by name."""
        if not self._lines:
            return {}
        record = self._lines[max(self._lines)]
        return {k.removeprefix("val/"): float(v) for k, v in record.items() if k.startswith("val/")}

    def add(self, step: int, weights: str, results: Mapping[str, float]) -> None:
        """Adds the results of a checkpoint.

        If the step was evaluated with other weights, the run was repeated from an earlier step. So
        the results of this and later steps are removed.

        Args:
          step: The step of the checkpoint.
          weights: The fingerprint of its weights.
          results: The values by name.
        """
        if step in self._lines:
            self._remove_from(step)
        values = {f"val/{name}": float(value) for name, value in results.items()}
        json_values = {k: v if math.isfinite(v) else str(v) for k, v in values.items()}
        record = {"step": step, "time": time.time(), "weights": weights, **json_values}
        handle = open_regular(self._path, os.O_WRONLY | os.O_APPEND)
        with open(handle, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._lines[step] = record
        self._write_events([record])

    def _remove_from(self, step: int) -> None:
        from tfloss.hooks.event_records import event_windows, split_window
        from tfloss.hooks.log_truncation import truncate_after

        if self._file is not None:
            self._file.close()
            self._file = None
        for path in self._directory.glob("events.out.tfevents*"):
            truncate_after(path, step - 1, split_window, windows=event_windows)
        self._lines = {at: record for at, record in self._lines.items() if at < step}
        kept: list[bytes] = []
        for line in self._path.read_bytes().splitlines(keepends=True):
            record = _own_record(line)
            if record is None or record["step"] < step:
                kept.append(line)
        replace_file(self._path, b"".join(kept))

    def _event_steps(self) -> set[int | None]:
        """Returns the steps that TensorBoard's files have."""
        from tfloss.hooks.event_records import event_windows, split_window

        found: set[int | None] = set()
        for path in self._directory.glob("events.out.tfevents*"):
            with path.open("rb") as file:
                stop = os.fstat(file.fileno()).st_size
                for start in event_windows(file):
                    file.seek(start)
                    found.update(step for _, step in split_window(file.read(stop - start)))
                    stop = start
        return found

    def _write_events(self, records: list[dict[str, Any]]) -> None:
        """Writes records to an event file of this process, which TensorBoard reads at once."""
        from tfloss.hooks.event_file import EventFileWriter
        from tfloss.hooks.event_protos import ScalarEvents
        from tfloss.hooks.tensorboard_tags import TensorBoardRuns

        if not records:
            return
        file = self._file = self._file or EventFileWriter(self._directory)
        events, tag = ScalarEvents(), TensorBoardRuns(["val"]).place  # as beside training
        for record in records:
            values = {tag(k)[1]: float(v) for k, v in record.items() if k.startswith("val/")}
            file.write(events.serialized(record["step"], record["time"], values))
        file.flush()


def _own_record(line: bytes) -> dict[str, Any] | None:
    """Returns the record in a line, or None for a line of somebody else."""
    try:
        record = json.loads(line)
        return record if isinstance(record["step"], int) and "weights" in record else None
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None


def _fingerprint(manifest: Mapping[str, Any]) -> str:
    """Returns what tells the variables of a checkpoint from others."""
    files = manifest["files"].items()
    sums = [entry["sha256"] for name, entry in sorted(files) if name.startswith("variables.")]
    return hashlib.sha256("".join(sums).encode()).hexdigest()[:16]


def _ends_run(manifest: Mapping[str, Any]) -> bool:
    """Whether the call of `train` that saved a checkpoint had nothing left to do."""
    extra = manifest["extra"]
    until = (extra.get("data") or {}).get("until")
    return bool(extra.get("stopped")) or (until is not None and manifest["step"] >= until)
