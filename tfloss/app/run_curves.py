"""Reads what runs have logged: `metrics.jsonl` and `config.json` of their workdirs. Host code."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfloss.common.nested_diff import flatten

_LONG_PAUSE = 60.0  # seconds between two logs that are not training, if others are shorter
Curve = list[tuple[int, float]]
"""`(step, value)`, in the order of steps."""


@dataclasses.dataclass(frozen=True)
class RunCurves:
    """What one run has logged.

    Attributes:
      name: A short name, different from those of the other runs.
      curves: `{tag: curve}`.
      config: `{dotted name: value}` of its configuration; empty if there is none.
      seconds: Seconds from the first log to the last, without the pauses of a run that was killed.
    """

    name: str
    curves: Mapping[str, Curve]
    config: Mapping[str, Any]
    seconds: float

    @property
    def step(self) -> int:
        """The last logged step."""
        return max((curve[-1][0] for curve in self.curves.values()), default=0)


def read_runs(paths: Sequence[Path]) -> list[RunCurves]:
    """Reads several runs.

    Args:
      paths: Workdirs, or paths of `metrics.jsonl` files.

    Raises:
      ValueError: There are no logs. The message names the path.
    """
    files = [path / "metrics.jsonl" if path.is_dir() else path for path in paths]
    for path, file in zip(paths, files, strict=True):
        if not file.is_file():
            raise ValueError(_nothing_in(path))
    return [
        _read_run(name, file)
        for name, file in zip(_short_names([f.parent for f in files]), files, strict=True)
    ]


def _read_run(name: str, file: Path) -> RunCurves:
    curves: dict[str, dict[int, float]] = {}
    times: list[tuple[int, float]] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
            step = int(row.pop("step"))
        except (ValueError, KeyError):  # a process that was killed may leave a part of a line
            continue
        times.append((step, float(row.pop("time", "nan"))))
        for tag, value in row.items():
            curves.setdefault(tag, {})[step] = float(value)
    config = file.parent / "config.json"
    return RunCurves(
        name,
        {tag: sorted(points.items()) for tag, points in curves.items()},
        flatten(json.loads(config.read_text()), ".") if config.is_file() else {},
        _seconds(times),
    )


def _seconds(times: list[tuple[int, float]]) -> float:
    """The time between the logs. A pause that is much longer than the others is not counted."""
    gaps = [after[1] - before[1] for before, after in zip(times, times[1:], strict=False)]
    usual = sorted(gaps)[len(gaps) // 2] if gaps else 0.0
    return sum(gap for gap in gaps if gap <= max(_LONG_PAUSE, 10 * usual))


def _short_names(folders: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    parts = [folder.absolute().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-count:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{'/'.join(one[-1:])} ({number})" for number, one in enumerate(parts, 1)]


def _nothing_in(path: Path) -> str:
    if not path.exists():
        return f"There is no {str(path)!r}."
    below = sorted(str(one.parent) for one in path.glob("*/metrics.jsonl"))
    advice = f" Did you mean the runs below it: {' '.join(below[:5])}?" if below else ""
    return (
        f"{str(path)!r} has no metrics.jsonl, so no run has logged there, or it ran without the "
        f"hook MetricsFile.{advice}"
    )
