"""The result of a call of `Trainer.train`. Host code."""

import base64
import dataclasses
import io
import math
from collections.abc import Mapping
from typing import Any

from tfloss.common.notebook_display import line_html
from tfloss.engine.engine import StepLogs


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """The result of a call of `Trainer.train`.

    Attributes:
      step: The number of completed updates.
      losses: `{name: value}` of the last step, and `total`; empty if no step was run.
      reason: Why training stopped before the step that was asked for, or None.
      curves: `{tag: {step: value}}` of the losses and evaluation results that this call logged. Of
        long curves every second point is dropped, again and again. Results are equal whatever
        their curves are, since a resumed run has only those of its own steps.
    """

    step: int
    losses: dict[str, float]
    reason: str | None = None
    curves: Mapping[str, Mapping[int, float]] = dataclasses.field(
        default_factory=dict[str, dict[int, float]], repr=False, compare=False
    )

    def plot(self) -> Any:
        """Draws the curves, one panel for each loss or metric; training and evaluation share it.

        Returns:
          A `matplotlib.figure.Figure`, which a notebook shows.

        Raises:
          ImportError: There is no matplotlib. The message says how to install it.
          ValueError: The call logged nothing.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise ImportError(
                "plot() needs matplotlib. Install it: pip install 'tfloss[plot]'."
            ) from None
        panels: dict[str, dict[str, Mapping[int, float]]] = {}
        for tag, curve in self.curves.items():
            data, _, name = tag.partition("/")
            if data == "losses":
                data = "train"
            panels.setdefault(name.removeprefix("losses/"), {})[data] = curve
        if not panels:
            raise ValueError("There is nothing to plot: this call of train() logged no losses.")
        columns = min(3, len(panels))
        rows = math.ceil(len(panels) / columns)
        figure = Figure(figsize=(3.2 * columns, 2.6 * rows), layout="constrained")
        for index, (name, curves) in enumerate(panels.items()):
            axes = figure.add_subplot(rows, columns, index + 1)
            for data, curve in curves.items():
                marker = "o" if len(curve) < 20 else ""
                axes.plot(list(curve), list(curve.values()), marker=marker, label=data)
            axes.set(title=name, xlabel="step")
            axes.legend()
        return figure

    def _repr_html_(self) -> str:
        """What a notebook shows: the last losses, and the curves if there is matplotlib."""
        losses = "  ".join(f"{name} {value:.4g}" for name, value in self.losses.items())
        text = f"step {self.step}  {losses}" + (f"  ({self.reason})" if self.reason else "")
        found = line_html(text)
        try:
            figure = self.plot()
        except (ImportError, ValueError):
            return found
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=160)  # shown at half its size: sharp
        data = base64.b64encode(picture.getvalue()).decode()
        width = round(80 * figure.get_figwidth())
        return f'{found}<img alt="curves" width="{width}" src="data:image/png;base64,{data}">'


def last_losses(logs: StepLogs | None) -> dict[str, float]:
    """Returns the losses of the last of some steps.

    Args:
      logs: What the steps reported, or None if no step was run.

    Returns:
      `{name: value}`, with `total` last; empty without steps.
    """
    if logs is None:
        return {}
    row = dict(zip(logs.names, logs.rows()[-1].tolist(), strict=True))
    return {name: row[tag] for tag, name in logs.losses.items()}
