"""Plots the curves of a run from its `metrics.jsonl`.

    python docs/plot_run.py runs/digits docs/digits.png

This draws the picture in the README. It needs the `docs` extra.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def curves(workdir: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Reads everything that a run logged.

    Args:
      workdir: The directory of the run.

    Returns:
      `{tag: (steps, values)}`.
    """
    found: dict[str, tuple[list[int], list[float]]] = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for tag, value in row.items():
            if tag not in ("step", "time") and isinstance(value, int | float):
                steps, values = found.setdefault(tag, ([], []))
                steps.append(row["step"])
                values.append(value)
    return found


def draw(found: dict[str, tuple[list[int], list[float]]], path: Path) -> None:
    """Plots the losses on the left and the accuracy on the right, of training, val and test.

    Args:
      found: `{tag: (steps, values)}`, as `curves` returns it.
      path: The image file to write.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for tag, (steps, values) in found.items():
        style = {"val": "o--", "test": "s"}.get(tag.partition("/")[0], "-")
        if "losses/" in tag and not tag.endswith("/total"):
            left.semilogy(steps, values, style, label=tag, markersize=4)
        elif tag.endswith("accuracy"):
            right.plot(steps, values, style, label=tag, markersize=4)
    left.set_title("losses, by name")
    right.set_title("accuracy")
    low = min((value for line in right.lines for value in line.get_ydata()), default=0.9)
    right.set_ylim(min(0.9, low - 0.02), 1.005)  # a marker at 1 is drawn whole
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw(curves(Path(sys.argv[1])), Path(sys.argv[2]))
