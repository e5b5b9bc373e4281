"""Draws what one step has watched. Host code; it needs matplotlib."""

import io
import math
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tfloss.hooks.watch_table import WatchTable

_MAX_ROWS, _MAX_NAME = 40, 40


def draw(table: WatchTable) -> bytes:
    """Draws the numbers of a step: variables to the left, losses to the right.

    Args:
      table: The numbers.

    Returns:
      A PNG.
    """
    losses = len(table.losses)
    paths = list(table.norms)[:_MAX_ROWS]
    columns = 2 + bool(losses)
    height = max(2.6, 0.22 * len(paths) + 1.4, 2.4 + 0.5 * losses if losses else 0)
    figure = Figure(figsize=(5.2 * columns, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1, columns)
    _draw_norms(figure.add_subplot(grid[0]), table, paths)
    _draw_ratios(figure.add_subplot(grid[1]), table, paths)
    if losses:
        inner = grid[2].subgridspec(2, 1, height_ratios=[2, 1])
        _draw_cosines(figure.add_subplot(inner[0]), table)
        _draw_shares(figure.add_subplot(inner[1]), table)
    left_out = len(table.norms) - len(paths)
    more = f" (without {left_out} more variables, see the table)" if left_out else ""
    figure.suptitle(f"Step {table.step}{more}", fontsize=11)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _draw_norms(axes: Any, table: WatchTable, paths: list[str]) -> None:
    for column, (name, marker) in enumerate((("gradient", "o"), ("update", "x"), ("weight", "|"))):
        values = [table.norms[path][column] for path in paths]
        shown = [math.nan if value == 0 else value for value in values]
        axes.plot(shown, range(len(paths)), marker, label=name, markersize=6)
    axes.set_xscale("log")
    axes.set_title("norms of each variable", fontsize=10)
    _name_rows(axes, paths)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)


def _draw_ratios(axes: Any, table: WatchTable, paths: list[str]) -> None:
    ratios = table.ratios
    axes.plot([ratios[path] or math.nan for path in paths], range(len(paths)), "o", color="C2")
    axes.axvline(1e-3, color="0.5", linestyle=":")
    axes.set_xscale("log")
    axes.set_title("norm of the update / norm of the weight", fontsize=10)
    axes.set_xlabel("the dotted line is 0.001, a usual value with Adam", fontsize=8)
    _name_rows(axes, [""] * len(paths))


def _draw_cosines(axes: Any, table: WatchTable) -> None:
    names = table.losses
    values = [[table.cosines.get((a, b), math.nan) for b in names] for a in names]
    axes.imshow(values, cmap="coolwarm_r", vmin=-1, vmax=1)
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if not math.isnan(value):
                dark = abs(value) > 0.6
                color = "white" if dark else "black"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=color, fontsize=9)
    short = [_short(name) for name in names]
    axes.set_xticks(range(len(names)), short, rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), short, fontsize=8)
    axes.set_title("cosines of the losses' gradients", fontsize=10)


def _draw_shares(axes: Any, table: WatchTable) -> None:
    shares = [100.0 * table.shares[name] for name in table.losses]
    axes.barh(range(len(shares)), shares, color="C0")
    axes.axvline(0, color="0.5", linewidth=0.8)
    axes.set_title("share of the update (%)", fontsize=10)
    _name_rows(axes, list(table.losses))


def _name_rows(axes: Any, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), [_short(name) for name in names], fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(alpha=0.3)


def _short(name: str) -> str:
    return name if len(name) <= _MAX_NAME else "..." + name[3 - _MAX_NAME :]
