"""Draws the curves of several runs, one panel for each loss or metric. Host code."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tfloss.app.run_curves import RunCurves

_MAX_PANELS, _COLUMNS = 12, 3
_LOG_RANGE = 30  # of the values of a loss, from which on its axis is logarithmic
_FEW = 20  # points that get markers
_STYLES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")


def draw(runs: Sequence[RunCurves], tags: Sequence[str], path: Path) -> list[str]:
    """Draws the curves to an image file. Training and validation share a panel.

    Args:
      runs: The runs, one colour each.
      tags: Tags of the curves.
      path: The file to write, such as `compare.png`.

    Returns:
      The panels that did not fit.

    Raises:
      ImportError: There is no matplotlib. The message says how to install it.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "The picture needs matplotlib. Install it (pip install 'tfloss[plot]'), or give "
            "--no-png."
        ) from None
    panels = _panels(tags)
    shown = list(panels)[:_MAX_PANELS]
    columns = min(_COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    legend = 0.3 * math.ceil(len(runs) / columns) + 0.3
    figure = Figure(figsize=(4.6 * columns, 3.3 * rows + legend), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for index, name in enumerate(shown):
        _draw_panel(figure.add_subplot(rows, columns, index + 1), name, panels[name], runs)
    handles = [_handle(_color(index, len(runs)), run.name) for index, run in enumerate(runs)]
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return list(panels)[_MAX_PANELS:]


def _panels(tags: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """Returns `{name of a panel: [(part of the data, tag)]}`: `val/accuracy` is with `accuracy`."""
    found: dict[str, list[tuple[str, str]]] = {}
    known = set(tags)
    for tag in tags:
        part, _, rest = tag.partition("/")
        shared = rest in known or rest.startswith("losses/")
        same = [other for other in known if other != tag and other.partition("/")[2] == rest]
        if rest and part != "losses" and (shared or same):
            found.setdefault(rest, []).append((part, tag))
        else:
            found.setdefault(tag, []).append(("train", tag))
    return found


def _draw_panel(
    axes: Any, name: str, parts: Sequence[tuple[str, str]], runs: Sequence[RunCurves]
) -> None:
    values: list[float] = []
    drawn: dict[str, str] = {}
    for number, (part, tag) in enumerate(sorted(parts, key=lambda one: one[0] == "train")):
        style = _STYLES[number % len(_STYLES)]
        for index, run in enumerate(runs):
            points = [one for one in run.curves.get(tag, ()) if math.isfinite(one[1])]
            if points:
                steps, numbers = zip(*points, strict=True)
                marker = "o" if len(points) <= _FEW else None
                axes.plot(
                    steps,
                    numbers,
                    style,
                    color=_color(index, len(runs)),
                    marker=marker,
                    markersize=3,
                )
                values += numbers
                drawn[part] = style
    if "losses" in name.split("/") and values and min(values) > 0:
        if max(values) / min(values) > _LOG_RANGE:
            axes.set_yscale("log")
    axes.set_title(name, fontsize=11)
    axes.set_xlabel("step")
    axes.set_ylabel(name.rpartition("/")[2])
    axes.grid(alpha=0.3)
    if len(drawn) > 1:
        axes.legend(handles=[_handle("0.3", part, s) for part, s in drawn.items()], fontsize=9)


def _color(index: int, count: int) -> Any:
    """The colour of a run: easily told apart up to ten runs, else along a scale."""
    from matplotlib import colormaps

    return f"C{index}" if count <= 10 else colormaps["turbo"](0.05 + 0.9 * index / (count - 1))


def _handle(color: Any, label: str, style: Any = "-") -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color, linestyle=style, label=label)
