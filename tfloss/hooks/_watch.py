"""A metric that a hook follows: which way is better, and whether it was ever logged.

    watch = Watch("EarlyStopping", "val/accuracy", "max")
    value = watch.value(scalars)                     # None if this log is about other things
    watch.better(value, best)

Host code, shared by the hooks that compare one evaluation with those before.
"""

import difflib
import math
import warnings
from collections.abc import Mapping


class Watch:
    """One metric for one hook. Host.

    Args:
      owner: the hook's name, for messages.
      metric: as it is logged, "val/accuracy".
      mode: "max" if more is better, "min" for losses.
      min_delta: what a change must exceed to count.

    Raises ValueError for another mode or a negative min_delta.
    """

    def __init__(self, owner: str, metric: str, mode: str, min_delta: float = 0.0):
        if mode not in ("max", "min"):
            raise ValueError(f"{owner}(mode={mode!r}): mode must be 'max' or 'min'.")
        if not min_delta >= 0:
            raise ValueError(f"{owner}(min_delta={min_delta!r}): min_delta must be at least 0.")
        self.owner, self.metric, self.mode, self.min_delta = owner, metric, mode, min_delta
        self._others: set[str] = set()
        self._seen = False

    def start(self) -> None:
        """Forgets which names were logged."""
        self._others, self._seen = set(), False

    def value(self, scalars: Mapping[str, float]) -> float | None:
        """The metric's value, if this log has one."""
        if self.metric in scalars:
            self._seen = True
            return float(scalars[self.metric])
        self._others.update(scalars)
        return None

    def better(self, value: float, best: float | None) -> bool:
        """Whether `value` beats `best` by more than min_delta; NaN never does."""
        if not math.isfinite(value):
            return False
        gain = 0 if best is None else (value - best if self.mode == "max" else best - value)
        return best is None or gain > self.min_delta

    def finish(self, error: BaseException | None) -> None:
        """Warns about a name that nobody logged, a typo most likely."""
        if self._seen or error is not None or not self._others:
            return
        near = difflib.get_close_matches(self.metric, sorted(self._others), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        warnings.warn(
            f"{self.owner} did nothing: {self.metric!r} was never logged.{hint} "
            f"Logged were: {', '.join(sorted(self._others))}.",
            stacklevel=3,
        )
