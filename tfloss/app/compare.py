"""Compares runs: a table of their settings, losses and metrics, and a picture of the curves. Host.

tfloss compare runs/a runs/b
"""

import fnmatch
import math
from collections.abc import Sequence
from pathlib import Path

from tfloss.app.run_curves import Curve, RunCurves, read_runs
from tfloss.checkpoint.listing import print_table

# What is not a result, and is shown only if it is asked for.
_BOOKKEEPING = (
    *("time/*", "input/*", "*_per_second", "weighted_losses/*"),
    *("learning_rate", "*/learning_rate", "gradient_norm*"),
)
_MISSING = "-"


def compare(paths: Sequence[Path], globs: Sequence[str], png: Path | None) -> list[str]:
    """Prints the table, and draws the picture.

    Args:
      paths: Workdirs of the runs.
      globs: Globs of the tags to show. Empty: losses and metrics, without bookkeeping.
      png: The picture to write, or None.

    Returns:
      Messages for people.

    Raises:
      ValueError: A run has no logs, or no tag matches. The message says what there is.
      ImportError: There is no matplotlib.
    """
    runs = read_runs(paths)
    tags = selected_tags(runs, globs)
    print_table(["", *(run.name for run in runs)], table(runs, tags))
    if png is None:
        return []
    from tfloss.app.compare_plot import draw

    left_out = draw(runs, tags, png)
    more = f" It leaves out {', '.join(left_out)}: choose by --metrics." if left_out else ""
    return [f"The curves are in {png}.{more}"]


def selected_tags(runs: Sequence[RunCurves], globs: Sequence[str]) -> list[str]:
    """Returns the tags to show: totals first, then losses, then the others.

    Args:
      runs: The runs.
      globs: Globs of the tags to show. Empty: losses and metrics, without bookkeeping.

    Raises:
      ValueError: No tag matches.
    """
    found = {tag: None for run in runs for tag in run.curves}
    if globs:
        chosen = [tag for tag in found if any(fnmatch.fnmatchcase(tag, glob) for glob in globs)]
    else:
        hidden = {tag for tag in found if any(fnmatch.fnmatchcase(tag, g) for g in _BOOKKEEPING)}
        chosen = [tag for tag in found if tag not in hidden]
    if not chosen:
        raise ValueError(f"No logged name matches. There are: {', '.join(sorted(found))}.")
    return sorted(chosen, key=lambda tag: (not tag.endswith("losses/total"), not is_loss(tag)))


def is_loss(tag: str) -> bool:
    """Returns whether a tag is one of a loss, so that lower values are better."""
    return "losses" in tag.split("/")[:-1]


def table(runs: Sequence[RunCurves], tags: Sequence[str]) -> list[list[str]]:
    """Returns the rows of the table: steps and time, settings that differ, and values.

    Args:
      runs: The runs, one column each.
      tags: Tags of the values. Each has the last value; of losses also the lowest one, of others
        the lowest and the highest one, with their steps.
    """
    rows = [
        ["step", *(f"{run.step:,}" for run in runs)],
        ["time", *(_duration(run.seconds) for run in runs)],
    ]
    names = {name: None for run in runs for name in run.config}
    for name in names:
        values = [str(run.config[name]) if name in run.config else _MISSING for run in runs]
        if len(set(values)) > 1:
            rows.append([name, *values])
    for tag in tags:
        curves = [run.curves.get(tag) for run in runs]
        rows.append([tag, *(_last(curve) for curve in curves)])
        if any(curve and len(curve) > 1 for curve in curves):
            rows.append(["  lowest", *(_extreme(curve, lowest=True) for curve in curves)])
            if not is_loss(tag):
                rows.append(["  highest", *(_extreme(curve, lowest=False) for curve in curves)])
    return rows


def _last(curve: Curve | None) -> str:
    return _number(curve[-1][1]) if curve else _MISSING


def _extreme(curve: Curve | None, *, lowest: bool) -> str:
    finite = [(value, step) for step, value in curve or () if math.isfinite(value)]
    if not finite:
        return _MISSING
    value, step = min(finite) if lowest else max(finite, key=lambda pair: (pair[0], -pair[1]))
    return f"{_number(value)} at {step:,}"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
