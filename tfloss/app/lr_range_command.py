"""Starts a script for a learning-rate range test, and draws its result. Host code.

    $ tfloss lr-range -- python train.py --config=configs/digits.py

The script starts TensorFlow itself (`tfloss.trainer.lr_range`). This process doesn't need it.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfloss.app.script_process import print_error, run_script
from tfloss.common.command_variables import RANGE_VARIABLE
from tfloss.common.reading import read_json
from tfloss.common.replacement import replace_file


def main(command: Sequence[str], low: float, high: float, steps: int, png: Path) -> int:
    """Runs the test. It prints the rates to choose from, and writes a picture and a JSON file.

    Args:
      command: The command that trains.
      low: The first learning rate.
      high: The last learning rate.
      steps: Number of updates.
      png: The picture. The JSON file has the same name, with another suffix.

    Returns:
      Exit code: 0; 1 if there is no matplotlib, and so no picture; 2 if the command could not be
      started; that of the command, or 1, if it ended before the test.
    """
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "result.json"
        asked = {"low": low, "high": high, "steps": steps, "file": str(file)}
        code, ending = run_script(command, {RANGE_VARIABLE: json.dumps(asked)})
        if not file.exists():
            print_error(
                "lr-range", f"the command {ending}, and no trainer.train(...) in it ran the test."
            )
            return code or 1
        found = read_json(file)
    png.parent.mkdir(parents=True, exist_ok=True)
    numbers = png.with_suffix(".json")
    replace_file(numbers, json.dumps(found, indent=1))
    print(described(found))
    try:
        draw(found, png)
    except ImportError as error:
        print_error("lr-range", f"{error} The numbers are in {numbers}.")
        return 1
    print(f"The curve is in {png}, its numbers in {numbers}.")
    return 0


def choices(found: dict[str, Any]) -> dict[str, float]:
    """Returns the rates to choose from, by what they are; empty if the loss never falls.

    Args:
      found: The result of the test, see `tfloss.trainer.lr_range.LrRange`.
    """
    rates, smoothed = found["rates"], found["smoothed"]
    if len(rates) < 3:
        return {}
    lowest = min(range(len(rates)), key=smoothed.__getitem__)
    slopes = [after - before for before, after in zip(smoothed, smoothed[1:], strict=False)]
    before = slopes[:lowest]
    if not before or min(before) >= 0:
        return {}
    steepest = rates[before.index(min(before))]
    return {"steepest descent": steepest, "a tenth of the lowest loss": rates[lowest] / 10}


def described(found: dict[str, Any]) -> str:
    """Returns the result in words.

    Args:
      found: The result of the test.
    """
    rates = found["rates"]
    if not rates:
        return "The loss is not finite at the first step."
    end = f"{rates[0]:.3g} to {rates[-1]:.3g} in {len(rates)} updates"
    reason = ", where the loss diverged" if found["diverged"] else ""
    lines = [f"The learning rate rose from {end}{reason}."]
    picked = [f"{name}: {rate:.2g}" for name, rate in choices(found).items()]
    if picked:
        lines.append(f"Rates to try: {'; '.join(picked)}.")
    else:
        lines.append("The loss did not fall. Begin lower (--from), or take more steps (--steps).")
    return "\n".join(lines)


def draw(found: dict[str, Any], png: Path) -> None:
    """Draws the loss over the rate.

    Args:
      found: The result of the test.
      png: The file to write.

    Raises:
      ImportError: There is no matplotlib. The message says how to install it.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "The picture needs matplotlib. Install it: pip install 'tfloss[plot]'."
        ) from None
    figure = Figure(figsize=(6.4, 4.0), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    rates, smoothed = found["rates"], found["smoothed"]
    axes.plot(rates, found["losses"], color="0.8", label="loss")
    axes.plot(rates, smoothed, color="C0", label="smoothed")
    for number, (name, rate) in enumerate(choices(found).items(), 1):
        axes.axvline(rate, color=f"C{number}", linestyle="--", label=f"{name}: {rate:.2g}")
    axes.set_xscale("log")
    if smoothed:  # the last values would hide all others
        low, start = min(found["losses"]), smoothed[0]
        margin = 0.1 * (start - low) or 0.1 * abs(start) or 1.0
        axes.set_ylim(low - margin, start + 5 * margin)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("losses/total")
    axes.set_title(f"Range test{', until the loss diverged' if found['diverged'] else ''}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    figure.savefig(png)
