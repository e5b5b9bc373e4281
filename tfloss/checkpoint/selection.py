"""Selects a checkpoint: the newest, that of a step, or the best one by a metric.

A checkpoint holds the values that were logged at its own step, with the direction of each metric.
So the best one is found without the logs, and without the hook that ranked it. Host code, without
TensorFlow.
"""

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from tfloss.checkpoint.files import CheckpointFiles, Logger
from tfloss.checkpoint.manifest import again_if_deleted, load_manifest
from tfloss.errors import CheckpointDeletedError, CheckpointError, listed

METRICS = "metrics"  # the entry of a manifest's "extra"
_MODES = ("min", "max")
_NOT_METRICS = ("input/", "time/", "steps_per_second", "examples_per_second")

Mode = Literal["min", "max"]


def saved_metrics(
    scalars: Mapping[str, float], modes: Mapping[str, Mode | None]
) -> dict[str, dict[str, Any]]:
    """Returns the values of a step as a checkpoint holds them.

    Args:
      scalars: The values that were logged at the step of the checkpoint. What reports time, and
        values that are not finite, are left out.
      modes: Whether lower ("min") or higher values ("max") of a metric are better. None: unknown.

    Returns:
      `{name: {"value": value, "mode": mode}}`, JSON values.
    """
    return {
        name: {"value": float(value), "mode": modes.get(name)}
        for name, value in scalars.items()
        if math.isfinite(value) and not name.startswith(_NOT_METRICS)
    }


class Metrics:
    """What the checkpoints of a directory say about metrics.

    Checkpoints whose manifest can't be read are left out.

    Args:
      files: The directory with the checkpoints.

    Attributes:
      values: `{name of a metric: {step: value}}`.

    Raises:
      CheckpointDeletedError: There are no values, and a checkpoint was deleted meanwhile.
    """

    def __init__(self, files: CheckpointFiles):
        self.values: dict[str, dict[int, float]] = {}
        self._modes: dict[str, Mode] = {}  # those of the newest checkpoint that knows them count
        deleted: CheckpointDeletedError | None = None
        for step in files.steps():
            try:
                extra = load_manifest(files.at(step))["extra"]
            except CheckpointDeletedError as error:
                deleted = error
                continue
            except CheckpointError:
                continue
            for name, entry in extra.get(METRICS, {}).items():
                self.values.setdefault(name, {})[step] = float(entry["value"])
                self._add_mode(name, entry.get("mode"))
            for state in extra.get("hooks", {}).values():  # one may know a direction that was given
                self._add_mode(state.get("metric"), state.get("mode"))
        if deleted is not None and not self.values:
            raise deleted

    def ranked(self, metric: str, mode: Mode | None = None) -> list[int]:
        """Returns the steps of the checkpoints that have a value of a metric, the best one first.

        Of equal ones, the earlier one is better.

        Args:
          metric: The name of the metric, as logged.
          mode: Its direction. None: what the checkpoints say.

        Raises:
          CheckpointError: No checkpoint has a value of it, or nobody knows its direction.
        """
        values = self.values.get(metric)
        if not values:
            raise CheckpointError(self._no_value_of(metric))
        mode = mode or self._modes.get(metric)
        if mode is None:
            found = _joined(f"{value:.6g} at step {step}" for step, value in values.items())
            raise CheckpointError(
                f"Nobody knows whether lower or higher values of {metric!r} are better. It was "
                f"{found}. Choose a checkpoint by its step. Only losses and metrics of Keras "
                "itself have a known direction; a metric in plain Python can have the attribute "
                "mode = 'min' or 'max'."
            )
        return sorted(values, key=lambda step: (values[step] * (-1 if mode == "max" else 1), step))

    def mode(self, metric: str) -> Mode | None:
        """Returns the direction of a metric, as far as the checkpoints know it."""
        return self._modes.get(metric)

    def _add_mode(self, name: Any, mode: Any) -> None:
        if isinstance(name, str) and mode in _MODES:
            self._modes[name] = mode

    def _no_value_of(self, metric: str) -> str:
        near = difflib.get_close_matches(metric, self.values, n=1)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        what = f"They have values of: {listed(sorted(self.values), 12)}. " if self.values else ""
        return (
            f"No checkpoint has a value of {metric!r}.{guess} {what}A checkpoint has the values "
            "that were logged at its own step: give SaveCheckpoint the same `every` as Evaluate."
        )


def select(
    files: CheckpointFiles,
    logger: Logger,
    *,
    step: int | None = None,
    best: str | None = None,
    mode: Mode | None = None,
) -> int:
    """Selects a valid checkpoint. All files of the selected one are read.

    If a trainer beside this process deletes a checkpoint meanwhile, another one is selected.

    Args:
      files: The directory with the checkpoints.
      logger: Receives a message for each corrupt checkpoint that is passed over.
      step: The step of the checkpoint. None: see `best`.
      best: The name of a metric, as logged: the checkpoint with its best value. None: the newest.
      mode: The direction of the metric. None: what the checkpoints say.

    Returns:
      The step of the checkpoint.

    Raises:
      ValueError: Both `step` and `best` are given.
      CheckpointError: There is no such checkpoint, or it is corrupt. The message lists what there
        is.
      CheckpointDeletedError: There is no checkpoint of `step`, or no more.
    """
    check_selection(step, best)
    if step is not None:
        _check_step(files, step)
        return step
    return again_if_deleted(lambda: _newest_or_best(files, logger, best, mode))


def _check_step(files: CheckpointFiles, step: int) -> None:
    """Raises CheckpointError if there is no valid checkpoint of a step."""
    steps = _steps(files)
    if step not in steps:
        raise CheckpointDeletedError(
            f"There is no checkpoint of step {step} in {files.path}. There are checkpoints of: "
            f"{_joined(steps)}."
        )
    if problem := files.problem(step):
        raise CheckpointError(
            f"The checkpoint {files.at(step)} is corrupt: {problem}. Valid ones: "
            f"{_joined(files.valid_steps())}."
        )


def _newest_or_best(
    files: CheckpointFiles, logger: Logger, best: str | None, mode: Mode | None
) -> int:
    steps = _steps(files)
    candidates = steps[::-1] if best is None else Metrics(files).ranked(best, mode)
    found = files.first_valid(candidates, logger)
    if found is None:
        raise CheckpointError(
            f"None of the checkpoints in {files.path} is valid; the lines above say why."
        )
    return found


def _steps(files: CheckpointFiles) -> list[int]:
    steps = files.steps()
    if not steps:
        raise CheckpointError(f"There is no checkpoint in {files.path}. Train first.")
    return steps


def _joined(parts: Iterable[object], most: int = 20) -> str:
    shown = [str(part) for part in parts]
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return (", ".join(shown[:most]) or "none") + more


def check_selection(step: object, best: object) -> None:
    """Checks the arguments that select a checkpoint.

    Args:
      step: The step of a checkpoint, or None.
      best: The name of a metric, or None.

    Raises:
      ValueError: Both are given, or one of them is of another type.
    """
    if step is not None and best is not None:
        raise ValueError(f"step={step!r} and best={best!r}: give one of them.")
    if step is not None and (isinstance(step, bool) or not hasattr(step, "__index__")):
        raise ValueError(f"step={step!r} must be the step of a checkpoint, a whole number.")
    if best is not None and not (isinstance(best, str) and best):
        raise ValueError(f"best={best!r} must be the name of a metric, such as 'val/accuracy'.")
