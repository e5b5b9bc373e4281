"""A logged metric that a hook compares with its earlier values.

    monitored = MonitoredMetric("EarlyStopping", "val/accuracy")
    monitored.start(trainer.hooks)                      # now it knows its mode
    value = monitored.value(step, scalars)              # None if this log doesn't have it
    monitored.is_improvement(value, best)

Shared by the hooks that look for the best value. Host code.
"""

import difflib
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfloss.common.logger import ChiefLogger
from tfloss.evaluation.metrics import Mode
from tfloss.hooks.base import Hook
from tfloss.hooks.evaluate import Evaluate
from tfloss.hooks.logged_names import TOTAL, LoggedNames

_LOSS_GROUPS = ("losses", "weighted_losses")


class MonitoredMetric:
    """One metric that one hook follows. Host.

    Args:
      owner: Class name of the hook, for messages.
      name: Name of the metric as logged, such as "val/accuracy".
      mode: "max" if higher values are better, "min" if lower ones are. None: what is known of the
        metric, see `known_mode`.
      min_delta: Difference that an improvement must exceed, at least 0.

    Attributes:
      name: As given.
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
        self._given: Mode | None = mode
        self._mode: Mode | None = mode
        self._owner = owner
        self._prefix = _log_prefix(name)
        self._other_names: set[str] = set()
        self._seen = self._warned = False
        self._owned = self._only_own = False

    @property
    def mode(self) -> Mode:
        """Whether lower ("min") or higher values ("max") are better; known after `start`."""
        if self._mode is None:
            raise RuntimeError(f"{self._owner}: the mode of {self.name!r} is not known yet.")
        return self._mode

    def start(self, hooks: Sequence[Hook]) -> None:
        """Finds the mode, and forgets which names were logged. Call it before training.

        Args:
          hooks: All hooks of the run.

        Raises:
          ValueError: No mode was given, and nobody knows it; or nothing logs the name.
        """
        self._other_names, self._seen, self._warned = set(), False, False
        self._mode = self._given or known_mode(self.name, hooks)
        names = LoggedNames(hooks)
        self.check_names(names)
        if self._mode is not None:
            return
        uncertain = not self._owned or names.doubts(self.name)
        if uncertain and (near := names.suggestion(self.name)):
            raise ValueError(
                f"{self._owner} monitors {self.name!r}, which no Evaluate hook logs.{near} If the "
                f"model logs it, as a summary, give {self._owner}(..., mode='min') or mode='max'."
            )
        raise ValueError(
            f"{self._owner} monitors {self.name!r}, and nobody knows whether lower or higher "
            f"values of it are better. Give {self._owner}(..., mode='min') or mode='max'. Only "
            "losses and metrics of Keras itself have a known direction. A metric in plain Python "
            "can have the attribute mode = 'min' or 'max'."
            + ("" if self._owned else names.advice(self.name))
        )

    def check_names(self, names: LoggedNames) -> None:
        """Refuses a name that nothing logs. Warns if it can't be known, and a name is near.

        Args:
          names: The names that the run logs, as far as they are known.

        Raises:
          ValueError: Nothing logs the name, and all hooks are known. The message has the nearest.
        """
        self._owned, self._only_own = names.evaluated(self.name), names.complete
        lacks = names.lacks(self.name)
        if not self._warned and (lacks or names.doubts(self.name)):
            self._warned = names.refuse(self._owner, self.name, sure=lacks)

    def restored(self, state: dict[str, Any], logger: ChiefLogger) -> dict[str, Any]:
        """Returns a hook's state without what belongs to another metric.

        Args:
          state: State of the hook, with the entries of `identity`.
          logger: Logger that is told if the state is not used.
        """
        before = {key: state.get(key, value) for key, value in self.identity().items()}
        if before == self.identity():
            return state
        logger.info(
            f"{self._owner} starts again: the checkpoint's best value is that of "
            f"{before['metric']!r} (mode={before['mode']!r}), not of {self.name!r} "
            f"(mode={self.mode!r})."
        )
        return {}

    def identity(self) -> dict[str, str]:
        """Returns what a best value belongs to, as JSON values for the state of a hook."""
        return {"metric": self.name, "mode": self.mode}

    def value(self, step: int, scalars: Mapping[str, float]) -> float | None:
        """Returns the value of the metric in a log.

        Warns at the first log that has the metric's neighbors (`val/...`) and lacks the metric,
        because a typo should not be found at the end of a run only. The neighbors of a name without
        a slash are those of a log of training, unless a hook of the user may log the name.

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
        if not self._prefix:
            trained = self._only_own and not self._owned and TOTAL in scalars
            neighbors = sorted(scalars) if trained else []
        if neighbors and not (self._seen or self._warned):
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


class MonitoringHook(Hook, own=True):
    """A hook that follows a logged metric, `_metric`, or None. Host."""

    def check_names(self, names: LoggedNames) -> None:
        """Refuses the name of a metric that nothing logs, once the step was traced.

        Args:
          names: The names that the run logs.

        Raises:
          ValueError: The message has the nearest name.
        """
        if (metric := self._followed()) is not None:
            metric.check_names(names)

    def dry_run(self, directory: Path) -> Sequence[str]:
        """Looks for the mode of the metric, as before training.

        Raises:
          ValueError: Nobody knows the mode.
        """
        if (metric := self._followed()) is not None:
            metric.start(self.trainer.hooks)
        return ()

    def _followed(self) -> MonitoredMetric | None:
        return getattr(self, "_metric", None)


def known_mode(name: str, hooks: Sequence[Hook]) -> Mode | None:
    """Returns whether lower or higher values of a logged metric are better, if that is known.

    Args:
      name: Name of the metric as logged.
      hooks: All hooks of the run.

    Returns:
      For a metric of an `Evaluate` hook what the metric itself says; "min" for its validation
      losses and for the losses of training. None for everything else.
    """
    owners = [hook for hook in hooks if isinstance(hook, Evaluate) and hook.logs(name)]
    if owners:
        modes: list[Mode | None] = [hook.mode_of(name) for hook in owners]
        return modes[0] if len(set(modes)) == 1 else None
    if "/" in name and name.split("/")[0] in _LOSS_GROUPS:
        return "min"
    return None


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
