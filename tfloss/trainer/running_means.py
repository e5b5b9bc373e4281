"""Means of what the steps report, over spans that a hook chooses, such as epochs. Host code.

A log covers `log_every` steps, and an epoch seldom ends where a log does. So a hook that needs the
mean over an epoch counts the steps itself.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from tfloss.engine.engine import StepLogs
from tfloss.forward.streaming_means import divided


class RunningMeans:
    """The mean of each value over the steps since `restart`, in double precision.

    The sums don't depend on how the steps were split into calls, nor on a resume.

    Args:
      pending: A function that returns the logs of the steps that `add` may not have got yet.
    """

    def __init__(self, pending: Callable[[], Iterable[StepLogs]]):
        self._pending = pending
        self.restart(0)

    def restart(self, step: int) -> None:
        """Starts a new span after `step` completed updates."""
        self._seen = step
        self._sums: dict[str, tuple[float, int]] = {}  # (sum, number of steps that report it)

    def add(self, block: StepLogs) -> None:
        """Adds the values of consecutive steps. Steps that were added before are ignored."""
        end = block.first + block.steps
        if end <= self._seen:
            return
        rows = block.rows()[max(self._seen - block.first, 0) :].astype(np.float64)
        before = [self._sums.get(name, (0.0, 0)) for name in block.names]
        # A cumulative sum adds one row after the other, however many there are.
        sums = np.cumsum([[value for value, _ in before], *rows], 0)[-1].tolist()
        for name, value, (_, count) in zip(block.names, sums, before, strict=True):
            self._sums[name] = value, count + len(rows)
        self._seen = end

    def values(self) -> dict[str, float]:
        """Returns `{tag: mean over the steps of this span that report it}`."""
        self._read()
        means = {name: value / count for name, (value, count) in self._sums.items()}
        return divided({name: value for name, (value, _) in self._sums.items()}, means)

    def state(self) -> dict[str, Any]:
        """Returns the sums so far, for the state of a hook."""
        self._read()
        return {"step": self._seen, "sums": {k: list(v) for k, v in self._sums.items()}}

    def restore(self, state: Mapping[str, Any] | None, step: int) -> None:
        """Restores the sums of a checkpoint, or starts a new span if they end at another step.

        Args:
          state: What `state` returned, or None.
          step: The number of completed updates.
        """
        self.restart(step)
        if state is not None and state["step"] == step:
            self._sums = {name: (value, count) for name, (value, count) in state["sums"].items()}

    def _read(self) -> None:
        for block in self._pending():
            self.add(block)
