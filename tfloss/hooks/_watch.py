"""A metric that a hook follows: which way is better, and whether it was ever logged.

    watch = Watch("EarlyStopping", "val/accuracy")   # more is better; of val/losses/total, less
    value = watch.value(step, scalars)               # None if this log is about other things
    watch.better(value, best)

Host code, shared by the hooks that compare one evaluation with those before.
"""

import difflib
import math
import warnings
from collections.abc import Mapping, Sequence

_LOSSES = ("losses", "weighted_losses")


class Watch:
    """One metric for one hook. Host.

    Args:
      owner: the hook's name, for messages.
      metric: as it is logged, "val/accuracy".
      mode: "max" if more is better, "min" if less is; None: "min" for what is logged under
        `losses/` (`losses/total`, `val/losses/kl`), else "max".
      min_delta: what a change must exceed to count.

    Raises ValueError for another mode or a negative min_delta.
    """

    def __init__(self, owner: str, metric: str, mode: str | None = None, min_delta: float = 0.0):
        if mode not in ("max", "min", None):
            raise ValueError(f"{owner}(mode={mode!r}): mode must be 'max' or 'min'.")
        parts = metric.split("/")[:-1]
        losses = next((i for i, part in enumerate(parts) if part in _LOSSES), None)
        mode = mode or ("max" if losses is None else "min")
        if not min_delta >= 0:
            raise ValueError(f"{owner}(min_delta={min_delta!r}): min_delta must be at least 0.")
        self.owner, self.metric, self.mode, self.min_delta = owner, metric, mode, min_delta
        # What comes in one log with it: val/..., coco/val/..., the training's losses/...
        end = None if losses is None else max(losses, 1)
        self._prefix = "".join(f"{part}/" for part in parts[:end])
        self._others: set[str] = set()
        self._seen = self._warned = False

    def start(self) -> None:
        """Forgets which names were logged."""
        self._others, self._seen, self._warned = set(), False, False

    def value(self, step: int, scalars: Mapping[str, float]) -> float | None:
        """The metric's value, if this log has one.

        Warns at the first log of names beside the metric (`val/...`) that lacks it, since the
        end of a run is late to learn of a typo.
        """
        if self.metric in scalars:
            self._seen = True
            return float(scalars[self.metric])
        self._others.update(scalars)
        beside = sorted(name for name in scalars if name.startswith(self._prefix))
        if beside and self._prefix and not (self._seen or self._warned):
            self._warned = True
            warnings.warn(
                f"{self.owner} waits for {self.metric!r}, and what was logged at step {step} lacks "
                f"it.{_hint(self.metric, beside)} Logged were: {', '.join(beside)}.",
                stacklevel=3,
            )
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
        others = sorted(self._others)
        warnings.warn(
            f"{self.owner} did nothing: {self.metric!r} was never logged."
            f"{_hint(self.metric, others)} Logged were: {', '.join(others)}.",
            stacklevel=3,
        )


def _hint(metric: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(metric, names, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
