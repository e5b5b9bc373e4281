"""A logged metric that a hook compares with its earlier values.

    monitored = MonitoredMetric("EarlyStopping", "val/accuracy")
    value = monitored.value(step, scalars)              # None if this log doesn't have it
    monitored.is_improvement(value, best)

Shared by the hooks that look for the best value. Host code.
"""

import difflib
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Literal

Mode = Literal["min", "max"]

_LOSS_GROUPS = ("losses", "weighted_losses")


class MonitoredMetric:
    """One metric that one hook follows. Host.

    Args:
      owner: Class name of the hook, for messages.
      name: Name of the metric as logged, such as "val/accuracy".
      mode: "max" if higher values are better, "min" if lower ones are. None: see `default_mode`.
      min_delta: Difference that an improvement must exceed, at least 0.

    Attributes:
      name: As given.
      mode: "min" or "max".
      min_delta: As given.

    Raises:
      ValueError: `mode` is another value, or `min_delta` is negative.
    """

    def __init__(self, owner: str, name: str, mode: Mode | None = None, min_delta: float = 0.0):
        if mode not in ("max", "min", None):
            raise ValueError(f"{owner}(mode={mode!r}): mode must be 'max' or 'min'.")
        if not min_delta >= 0:
            raise ValueError(f"{owner}(min_delta={min_delta!r}): min_delta must be at least 0.")
        self.name, self.min_delta = name, min_delta
        self.mode: Mode = mode or default_mode(name)
        self._owner = owner
        self._prefix = _log_prefix(name)
        self._other_names: set[str] = set()
        self._seen = self._warned = False

    def reset(self) -> None:
        """Forgets which names were logged."""
        self._other_names, self._seen, self._warned = set(), False, False

    def value(self, step: int, scalars: Mapping[str, float]) -> float | None:
        """Returns the value of the metric in a log.

        Warns at the first log that has the metric's neighbors (`val/...`) and lacks the metric,
        because a typo should not be found at the end of a run only.

        Args:
          step: Step of the log.
          scalars: Values of the log, by name.

        Returns:
          The value; None if the log doesn't have the metric.
        """
        if self.name in scalars:
            self._seen = True
            return float(scalars[self.name])
        self._other_names.update(scalars)
        neighbors = sorted(name for name in scalars if name.startswith(self._prefix))
        if neighbors and self._prefix and not (self._seen or self._warned):
            self._warned = True
            warnings.warn(
                f"{self._owner} monitors {self.name!r}, which is missing in the log of step "
                f"{step}.{_suggestion(self.name, neighbors)} This log has: "
                f"{', '.join(neighbors)}.",
                stacklevel=3,
            )
        return None

    def is_improvement(self, value: float, best: float | None) -> bool:
        """Returns whether a value is better than the best one so far.

        Args:
          value: The new value. NaN and infinity are no improvement.
          best: The best value so far; None if there is none.

        Returns:
          Whether `value` beats `best` by more than `min_delta`.
        """
        if not math.isfinite(value):
            return False
        if best is None:
            return True
        return (value - best if self.mode == "max" else best - value) > self.min_delta

    def warn_if_never_logged(self, error: BaseException | None) -> None:
        """Warns at the end of a run if other names were logged, and the metric never was.

        Args:
          error: The error that ended the run, or None. A run that failed gets no warning.
        """
        if self._seen or error is not None or not self._other_names:
            return
        others = sorted(self._other_names)
        warnings.warn(
            f"{self._owner} did nothing, because {self.name!r} was never logged."
            f"{_suggestion(self.name, others)} Logged names: {', '.join(others)}.",
            stacklevel=3,
        )


def default_mode(metric: str) -> Mode:
    """Returns the direction in which a metric improves, if the user doesn't give one.

    Args:
      metric: Name of the metric as logged.

    Returns:
      "min" for what is logged under `losses/` (`losses/total`, `val/losses/kl`), else "max".
    """
    return "max" if _loss_group(metric) is None else "min"


def _loss_group(metric: str) -> int | None:
    """Returns which part of the name, from 0, is the group of losses; None if there is none."""
    groups = metric.split("/")[:-1]
    return next((index for index, part in enumerate(groups) if part in _LOSS_GROUPS), None)


def _log_prefix(metric: str) -> str:
    """Returns the prefix of the names logged together with a metric.

    It is `val/`, `coco/val/`, or the `losses/` of training.
    """
    group = _loss_group(metric)
    end = None if group is None else max(group, 1)
    return "".join(f"{part}/" for part in metric.split("/")[:-1][:end])


def _suggestion(metric: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(metric, names, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
