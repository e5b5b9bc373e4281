"""Prints the checkpoints of a workdir as a table. Host code, without TensorFlow.

step  age    size      state                                        val/accuracy (max)
1000  3 h    412.0 MB  valid                                        0.9712
2000  2 h    412.0 MB  variables.index is missing                   0.9801 (best)
"""

import concurrent.futures
import dataclasses
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from tfloss.checkpoint.files import CheckpointFiles
from tfloss.checkpoint.manifest import again_if_deleted, deletion_noticed, load_manifest
from tfloss.checkpoint.ranking import ranking_of_checkpoint
from tfloss.checkpoint.selection import Metrics
from tfloss.errors import CheckpointDeletedError, CheckpointError

_UNITS = (("s", 1), ("min", 60), ("h", 3600), ("d", 86400))
_NO_METRIC = "best"  # the title of the last column if no metric ranks the checkpoints


def find_checkpoints(workdir: Path) -> CheckpointFiles:
    """Finds the checkpoints of a run.

    Args:
      workdir: The workdir of the run, or the directory with its checkpoints.

    Returns:
      The directory with the checkpoints, at least one.

    Raises:
      CheckpointError: There is no checkpoint.
    """
    for path in (workdir / "checkpoints", workdir):
        if (files := CheckpointFiles(path)).steps():
            return files
    raise CheckpointError(f"There is no checkpoint in {workdir} or {workdir / 'checkpoints'}.")


def print_checkpoints(files: CheckpointFiles, metric: str | None = None) -> None:
    """Prints step, age, size and state of each checkpoint, and a metric.

    The state is "valid", or the first problem that was found. Checkpoints that a trainer deletes
    meanwhile are left out.

    Args:
      files: The directory with the checkpoints. All of their files are read.
      metric: The name of a logged metric. None: the one that the best checkpoints are kept by.

    Raises:
      CheckpointError: No checkpoint has a value of the metric, or nobody knows its direction.
      CheckpointDeletedError: All checkpoints were deleted meanwhile, again and again.
    """
    found, title, values = again_if_deleted(lambda: _look_at_all(files, metric))
    rows: list[list[str]] = []
    for one in found:
        value = f"{values[one.step]:.6g}" if one.step in values else ""
        first = value and next(iter(values)) == one.step
        rows.append(
            [
                str(one.step),
                _format_age(time.time() - one.time),
                f"{one.bytes / 1e6:,.1f} MB",
                one.problem or "valid",
                f"{value} (best)" if first else value,
            ]
        )
    print_table(["step", "age", "size", "state", title], rows)


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table: drawn by rich on a terminal, else plain columns, two spaces apart.

    Args:
      header: The titles of the columns.
      rows: The cells of each row.
    """
    rows = list(rows)
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        drawn = Table(*header)
        for row in rows:
            drawn.add_row(*(Text(cell) for cell in row))
        Console().print(drawn)
        return
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in [header, *rows]:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


@dataclasses.dataclass(frozen=True)
class _Found:
    """What is known of a checkpoint: its step, modification time, size and first problem."""

    step: int
    time: float
    bytes: int
    problem: str | None


def _look_at_all(
    files: CheckpointFiles, metric: str | None
) -> tuple[list[_Found], str, dict[int, float]]:
    """Looks at all checkpoints: what is known of each, and the title and values of a metric."""
    if metric is not None:
        Metrics(files).ranked(metric)  # a wrong name is reported before all files are read
    with concurrent.futures.ThreadPoolExecutor() as threads:
        looked_at = threads.map(lambda step: _look_at(files, step), files.steps())
        found = [one for one in looked_at if one is not None]
    if not found:
        raise CheckpointDeletedError(
            f"All checkpoints in {files.path} were deleted while they were read."
        )
    valid = [one.step for one in found if one.problem is None]
    title, values = _best_values(files, valid) if metric is None else _values(files, valid, metric)
    return found, title, values


def _look_at(files: CheckpointFiles, step: int) -> _Found | None:
    """Looks at a checkpoint, and returns None if it is deleted meanwhile."""
    try:
        path = files.at(step)
        with deletion_noticed(path):
            size = sum(file.stat().st_size for file in path.glob("*") if file.is_file())
            return _Found(step, path.lstat().st_mtime, size, files.problem(step))
    except CheckpointDeletedError:
        return None


def _best_values(
    files: CheckpointFiles, valid_steps: Sequence[int]
) -> tuple[str, dict[int, float]]:
    """Reads the metric that SaveCheckpoint ranks by and its values by step, the best first."""
    for step in reversed(valid_steps):
        try:
            ranking = ranking_of_checkpoint(load_manifest(files.at(step))["extra"])
        except CheckpointDeletedError:
            continue
        if ranking is not None:
            mode = f" ({ranking.mode})" if ranking.mode else ""
            return f"{ranking.metric}{mode}", {at: value for value, at in ranking.best}
    return _NO_METRIC, {}


def _values(
    files: CheckpointFiles, valid_steps: Sequence[int], metric: str
) -> tuple[str, dict[int, float]]:
    """Reads the values of a metric by step, the best first."""
    found = Metrics(files)
    ranked = [step for step in found.ranked(metric) if step in valid_steps]
    values = {step: found.values[metric][step] for step in ranked}
    return f"{metric} ({found.mode(metric)})", values


def _format_age(seconds: float) -> str:
    unit, size = next((u for u in reversed(_UNITS) if seconds >= 2 * u[1]), _UNITS[0])
    return f"{seconds / size:.0f} {unit}"
