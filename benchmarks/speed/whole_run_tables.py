"""The tables and the picture of whole runs, in docs/performance.md."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from write import DOCS, TITLES, put

STEPS = (100, 1_000, 10_000, 100_000)
COLOURS = {"tfloss": "#d62728", "hand": "#1f77b4", "fit": "#2ca02c", "Keras on JAX": "#9467bd"}
STYLES = ("-", "--", ":", "-.")
PICTURE = DOCS / "whole_runs.png"


def of_steps(name: str, runs: dict, steps: int) -> dict | None:
    """Returns the run that tells the time to a step: only tfloss has one for each."""
    one = runs.get(str(steps if name == "tfloss" else STEPS[-1]))
    return None if one is None or one["error"] else one


def seconds_to(name: str, runs: dict, steps: int) -> tuple[float, bool] | None:
    """Returns the seconds until a step and its checkpoint, and whether they were measured.

    They are None if nothing is known.
    """
    one = of_steps(name, runs, steps)
    if one is None:
        return None
    saving = one["ended"] - one["at"]
    reached = [age for step, age in one["points"] if step >= steps]
    if one["last"] >= steps:
        return (reached or [one["at"]])[0] + saving, True
    if not one["rate"]:
        return None
    return one["at"] + (steps - one["last"]) / one["rate"] + saving, False


def table(found: dict) -> list[str]:
    """The table of a workload on one machine."""
    heads = [f"{n:,}" for n in STEPS]
    lines = [
        "| | first update | " + " | ".join(heads) + " | steps/s | longest pause after it |",
        "| --- |" + " --: |" * (len(STEPS) + 3),
    ]
    times = {
        name: {n: seconds_to(name, runs, n) for n in STEPS}
        for name, runs in found.items()
        if any(not one["error"] for one in runs.values())
    }
    best = {n: min((t[n][0] for t in times.values() if t[n]), default=0.0) for n in STEPS}
    for name in sorted(times, key=lambda name: name != "tfloss"):
        runs = [one for one in found[name].values() if not one["error"]]
        cells = [shown(times[name][n], best[n]) for n in STEPS]
        first = min((one["points"][0][1] for one in runs if one["points"]), default=0.0)
        rate = f"{runs[-1]['rate']:,.0f}" if runs[-1]["rate"] else "–"
        pause = max(one["pause"] for one in runs)
        lines.append(f"| {name} | {first:.1f} | {' | '.join(cells)} | {rate} | {pause:.2f} |")
    others = {n: [t[n][0] for k, t in times.items() if k != "tfloss" and t[n]] for n in STEPS}
    mine = times.get("tfloss", {})
    ratios = [
        f"{mine[n][0] / min(others[n]):.2f}" if mine.get(n) and others[n] else "–" for n in STEPS
    ]
    lines.append("| *tfloss / best other* | | " + " | ".join(ratios) + " | | |")
    return lines


def shown(value: tuple[float, bool] | None, best: float) -> str:
    """Formats seconds. The best ones are bold, and computed ones have a mark."""
    if value is None:
        return "–"
    text = f"{'' if value[1] else '~ '}{value[0]:,.1f}"
    return f"**{text}**" if value[0] == best else text


def sections(result: dict) -> list[str]:
    """The tables of all machines and workloads."""
    lines = [f"![Steps over time, from the start of the process]({PICTURE.name})", ""]
    for condition, here in result.items():
        for workload, found in here["workloads"].items():
            cpu = here["machine"]["cpu"]
            lines += [f"**{TITLES[workload]}**, seconds on {condition} ({cpu}):", ""]
            lines += [*table(found), ""]
    return lines[:-1]


def plot(workloads: dict) -> None:
    """Draws steps over time."""
    count = len(workloads)
    figure, panels = plt.subplots(
        1, count, figsize=(6.4 * count, 4.6), layout="constrained", squeeze=False
    )
    for axes, (workload, found) in zip(panels[0], workloads.items(), strict=True):
        limit = STEPS[-2]
        curves = {name: curve(name, runs, limit) for name, runs in found.items()}
        curves = {name: points for name, points in curves.items() if points}
        ends = [points[-1][1] for points in curves.values() if points[-1][0] >= limit]
        right = max(1.6 * min(ends, default=20.0), 15.0)
        places = []
        for name, points in curves.items():
            points = clipped(points, right)
            colour, style = look(name, list(curves))
            width = 2.6 if name == "tfloss" else 1.4
            axes.plot(
                [age for _, age in points],
                [step for step, _ in points],
                style,
                color=colour,
                lw=width,
                zorder=3 if name == "tfloss" else 2,
            )
            places.append((points[-1][0], points[-1][1], name, colour))
        label(axes, places, limit, right)
        axes.set_title(TITLES[workload])
        axes.set_xlabel("seconds since the process began")
        axes.set_ylabel("steps")
        axes.grid(alpha=0.3)
    figure.savefig(PICTURE, dpi=110)
    plt.close(figure)


def curve(name: str, runs: dict, limit: int) -> list[list[float]]:
    """Returns the points of a contender's run of `limit` steps, from the start of its process."""
    whole = (of_steps(name, runs, steps) for steps in (limit, *reversed(STEPS)))
    one = next((one for one in whole if one is not None and one["points"]), None)
    if one is None:
        return []
    first = one["points"][0]
    return [[0, 0.0], [0, first[1] * 0.999], *(p for p in one["points"] if p[0] <= limit)]


def clipped(points: list[list[float]], right: float) -> list[list[float]]:
    """Cuts a line at the right edge of the picture."""
    inside = [p for p in points if p[1] <= right]
    if len(inside) < len(points):
        (step, age), (later, then) = inside[-1], points[len(inside)]
        inside.append([step + (later - step) * (right - age) / (then - age), right])
    return inside


def look(name: str, names: list[str]) -> tuple[str, str]:
    """Returns colour and style: one colour for each kind of contender."""
    kind = next((kind for kind in COLOURS if name.startswith(kind)), None)
    same = [other for other in names if kind and other.startswith(kind)]
    return COLOURS.get(kind or "", "#7f7f7f"), STYLES[same.index(name) % len(STYLES) if same else 0]


def label(axes: plt.Axes, places: list, limit: int, right: float) -> None:
    """Writes the names at the ends of their lines, so far apart that none covers another."""
    axes.set_xlim(0, right * 1.6)
    axes.set_ylim(-0.02 * limit, 1.05 * limit)
    gap, height = 0.045 * limit, 1.04 * limit
    ordered = sorted(places, key=lambda p: (-p[0], p[1]))  # the first ones to get there on top
    heights = []
    for step, *_ in ordered:
        height = min(step, height - gap)
        heights.append(height)
    lowest = 0.0
    for i in reversed(range(len(heights))):
        heights[i] = max(heights[i], lowest)
        lowest = heights[i] + gap
    for (step, age, name, colour), height in zip(ordered, heights, strict=True):
        axes.annotate(
            name,
            (age, step),
            (right * 1.04, height),
            color=colour,
            fontsize=8,
            va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.5, "alpha": 0.6},
        )


def write(result: dict) -> None:
    """Writes tables and picture.

    Args:
      result: `{condition: {"machine", "workloads": {workload: {contender: {steps: run}}}}}`.
    """
    put("whole runs", sections(result), "whole_runs.py")
    plot(next(iter(result.values()))["workloads"])
