"""The ranking of the best checkpoints, as the state of the hook SaveCheckpoint holds it.

The hook writes the ranking, and `tfloss checkpoints` reads it without importing hooks. So the form
in which it is stored is defined here. Host code, without TensorFlow.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

# The states of hooks are stored by class name, with a number from the second of a class on.
_HOOK_NAME = re.compile(r"SaveCheckpoint(_\d+)?")


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The best checkpoints by one metric.

    Attributes:
      metric: The name of the metric, as logged.
      mode: "min" if lower values are better, "max" if higher ones are. None: not stored.
      best: `(value of the metric, step)` of the best checkpoints, the best one first.
    """

    metric: str
    mode: str | None = None
    best: tuple[tuple[float, int], ...] = ()

    @property
    def steps(self) -> set[int]:
        """The steps of the best checkpoints."""
        return {step for _, step in self.best}

    def is_by(self, metric: str, mode: str) -> bool:
        """Returns whether this is a ranking by a metric in a direction.

        Args:
          metric: The name of the metric, as logged.
          mode: "min" or "max". A ranking that was stored without one fits both.
        """
        return self.metric == metric and self.mode in (None, mode)

    def to_state(self) -> dict[str, Any]:
        """Returns the ranking as JSON values, for the state of the hook."""
        best = [list(entry) for entry in self.best]
        return {"metric": self.metric, "mode": self.mode, "best": best}


def ranking_of_state(state: Mapping[str, Any]) -> Ranking | None:
    """Reads the ranking from the state of the hook.

    Args:
      state: The state of SaveCheckpoint.

    Returns:
      The ranking; None if the hook ranks nothing, or has ranked nothing yet.
    """
    if "metric" not in state:
        return None
    best = tuple((value, step) for value, step in state.get("best", ()))
    return Ranking(state["metric"], state.get("mode"), best)


def ranking_of_checkpoint(extra: Mapping[str, Any]) -> Ranking | None:
    """Reads the ranking from a checkpoint.

    Args:
      extra: The "extra" of the checkpoint's manifest.

    Returns:
      The ranking of the first SaveCheckpoint that has one, or None.
    """
    for name, state in extra.get("hooks", {}).items():
        if _HOOK_NAME.fullmatch(name) and (ranking := ranking_of_state(state)) is not None:
            return ranking
    return None
