"""Writes the tables and the plot of docs/performance.md.

python benchmarks/speed/write.py             # measures first: half an hour on two cores
python benchmarks/speed/write.py --written   # uses the last measurements

Run `overhead.py` before, for the table of overheads.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from measure import CONTENDERS, HAND, NAMES, RESULT, STARTED, TUNED  # noqa: E402

DOCS = HERE.parents[1] / "docs"
PAGE = DOCS / "performance.md"
OVERHEAD = RESULT.with_name("overhead.json")
TITLES = {
    "mlp": "MLP 784-128-10, batch 32",
    "small": "160 small variables",
    "cnn": "CNN 28×28, batch 64",
    "transformer": "transformer, 4 blocks of 256",
    "tasks": "50 tasks, 50 losses",
    "detector": "two-stage detector, 64×64",
}


def rates(found: dict, name: str) -> list[float]:
    """The measured steps/s of a contender."""
    return found.get(name, {}).get("rates", [])


def middle(found: dict, name: str) -> float:
    """The median steps/s of a contender, 0 if it was not measured."""
    return statistics.median(rates(found, name)) if rates(found, name) else 0.0


def best(found: dict, names: tuple[str, ...]) -> str:
    """The fastest one of some contenders."""
    return max(names, key=lambda name: middle(found, name))


def against(found: dict, name: str) -> str:
    """The speed of tfloss relative to a contender: median, minimum and maximum over rounds."""
    pairs = zip(rates(found, "tfloss"), rates(found, name), strict=False)
    ratios = sorted(one / other for one, other in pairs)
    if not ratios:
        return "–"
    return f"**{statistics.median(ratios):.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def number(value: float) -> str:
    """Formats a number of steps/s."""
    return "–" if not value else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def speeds(result: dict) -> list[str]:
    """The table of steps/s."""
    lines = ["| | " + " | ".join(TITLES[n] for n in NAMES if n in result) + " |"]
    lines.append("| --- |" + " --: |" * len(result))
    for name in sorted(CONTENDERS, key=lambda name: (name != "tfloss", CONTENDERS.index(name))):
        cells = [number(middle(result[n], name)) for n in NAMES if n in result]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def ratios(result: dict) -> list[str]:
    """The table of relative speeds."""
    lines = [
        "| | `fit` | tuned `fit` | Orbit | best by hand | mode chosen |",
        "| --- |" + " --- |" * 5,
    ]
    for n in (n for n in NAMES if n in result):
        found = result[n]
        tuned, hand = best(found, TUNED), best(found, HAND)
        cells = [against(found, other) for other in ("fit", tuned, "Orbit", hand)]
        cells[1] += f", {tuned.removeprefix('fit, ')}"
        cells[3] += f", {hand.removeprefix('hand, ')}"
        lines.append(f"| {TITLES[n]} | " + " | ".join(cells) + f" | {found['tfloss']['note']} |")
    return lines


def checks(result: dict) -> list[str]:
    """The table of losses, start times and memory."""
    columns = ["first step, s", "peak memory, MB", "XLA loop: peak memory, MB"]
    lines = [
        "| | loss of the first steps | " + " | ".join(columns) + " |",
        "| --- |" + " --- |" * 4,
    ]
    for n in (n for n in NAMES if n in result):
        found = result[n]
        values = [found[c]["loss"] for c in CONTENDERS if found.get(c, {}).get("loss") is not None]
        began = found.get("started", {})
        (hand, mine), loops = STARTED
        starts = [
            f"{statistics.median(began[name]['start']):.1f}" if began.get(name) else "–"
            for name in (mine, hand)
        ]
        start = ", by hand ".join(starts) if began else "–"
        cells = [f"{min(values):.5g} to {max(values):.5g}", start]
        for other, one in ((hand, mine), loops):
            sizes = [began.get(name, {}).get("megabytes") for name in (one, other)]
            cells.append("{:.0f}, by hand {:.0f}".format(*sizes) if all(sizes) else "–")
        lines.append(f"| {TITLES[n]} | " + " | ".join(cells) + " |")
    return lines


def overheads(rows: dict) -> list[str]:
    """The table of overheads."""
    lines = ["| | | time |", "| --- | --- | --- |"]
    for title, variants in rows.items():
        for name, value in variants.items():
            if name == "seconds":
                lines.append(f"| {title} | saved | {1000 * value:.0f} ms |")
            else:
                middle, low, high = value
                lines.append(f"| {title} | {name} | {middle:.2f} ({low:.2f} to {high:.2f}) |")
    return lines


def plot(result: dict, path: Path) -> None:
    """Draws the relative speeds."""
    names = [n for n in NAMES if n in result]
    shown = {"fit": "fit", "tuned fit": TUNED, "Orbit": "Orbit", "best by hand": HAND}
    figure, axes = plt.subplots(figsize=(9, 3.2), layout="constrained")
    width = 0.8 / (len(shown) + 1)
    for k, (label, which) in enumerate({**shown, "tfloss": "tfloss"}.items()):
        heights = []
        for n in names:
            name = which if isinstance(which, str) else best(result[n], which)
            heights.append(middle(result[n], name) / middle(result[n], "tfloss"))
        places = [i + (k - len(shown) / 2) * width for i in range(len(names))]
        axes.bar(places, heights, width, label=label)
    axes.set_xticks(range(len(names)), [TITLES[n].replace(", ", ",\n") for n in names], fontsize=8)
    axes.set_ylabel("steps/s, tfloss = 1")
    axes.grid(axis="y", alpha=0.3)
    figure.legend(fontsize=8, ncols=5, loc="outside upper center")
    figure.savefig(path, dpi=110)


def put(name: str, lines: list[str], script: str = "write.py") -> None:
    """Replaces a table of the page."""
    begin, end = f"<!-- {name}: written by benchmarks/speed/{script} -->", f"<!-- end of {name} -->"
    before, rest = PAGE.read_text().split(begin)
    PAGE.write_text(f"{before}{begin}\n" + "\n".join(lines) + f"\n{end}{rest.split(end)[1]}")


def main() -> None:
    """Measures unless told otherwise, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--written", action="store_true", help="don't measure again")
    if not parser.parse_args().written:
        some = [f"--only={name}" for name in ("fit", "fit, many steps/call", "Orbit", "tfloss")]
        measure = [sys.executable, str(HERE / "measure.py")]
        subprocess.run([*measure, *(n for n in NAMES if n != "detector")], check=True)
        subprocess.run([*measure, "detector", *some], check=True)
    result = json.loads(RESULT.read_text())
    put("ratios", ratios(result))
    put("speeds", speeds(result))
    put("checks", checks(result))
    if OVERHEAD.exists():
        put("overhead", overheads(json.loads(OVERHEAD.read_text())))
    plot(result, DOCS / "performance.png")


if __name__ == "__main__":
    main()
