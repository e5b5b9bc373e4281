"""When a hook is due: every so many steps, seconds, epochs, examples or per cent of the run.

    every = Every(epochs=0.5)
    every.start(run)                      # the trainer does this at the start of a run
    every.next_step(137), every.due(138)

All of this runs on the host, between calls of the training step.
"""

import copy
import math
import numbers
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from tfloss.hooks.run_info import RunInfo

_KINDS = ("steps", "seconds", "epochs", "examples", "percent")
_WHOLE = ("steps", "examples")


class Every:
    """A period in exactly one unit.

    Steps are counted from step 0 of the training, not from where this run began, and
    periods are exact fractions: the k-th due step is `ceil(k * period)`. So a resumed run is
    due at the steps of an undisturbed one, and nothing drifts.

    `Every(seconds=...)` remembers when it was last due: give each hook one of its own.

    Args:
      steps: whole updates.
      seconds: seconds of `clock`, looked at between calls of the training step.
      epochs: of `RunInfo.steps_per_epoch`; fractions are allowed.
      examples: whole global examples, of `RunInfo.batch_size`.
      percent: of `RunInfo.steps`, at most 100.
      clock: seconds, for `seconds`; injectable for tests.

    Raises ValueError unless exactly one is given, by name, and it is more than 0.
    """

    def __init__(
        self,
        *unnamed: Any,
        steps: float | None = None,
        seconds: float | None = None,
        epochs: float | Fraction | None = None,
        examples: float | None = None,
        percent: float | Fraction | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        if unnamed:
            shown = ", ".join(map(repr, unnamed))
            raise ValueError(f"Every({shown}): {shown} of what? Write {_advice(unnamed[0])}.")
        values = zip(_KINDS, (steps, seconds, epochs, examples, percent), strict=True)
        given = {kind: value for kind, value in values if value is not None}
        if len(given) != 1:
            shown = ", ".join(f"{kind}={value!r}" for kind, value in given.items())
            raise ValueError(f"Every({shown}): give exactly one of {', '.join(_KINDS)}.")
        ((self.kind, value),) = given.items()
        self.amount = _exact(self.kind, value)
        self._clock = clock
        self._period = self.amount if self.kind == "steps" else None
        self._last: float | None = None

    def start(self, run: RunInfo) -> None:
        """Finds the period for this run, or sets the clock going.

        Raises ValueError if the run does not know its batch size or epoch.
        """
        if self.kind == "seconds":
            self._last = self._clock()
        elif self.kind == "percent":
            self._period = self.amount * run.steps / 100
        elif self.kind == "examples":
            self._period = self.amount / Fraction(self._known(run.batch_size, "batch_size"))
        elif self.kind == "epochs":
            epoch = self._known(run.steps_per_epoch, "steps_per_epoch")
            self._period = self.amount * _exact_epoch(epoch, run.batch_size)

    def next_step(self, step: int) -> int | None:
        """The first due step after `step`; None for `seconds`, where nobody can know."""
        if self.kind == "seconds":
            return None
        if self._period is None:
            raise RuntimeError(f"{self!r} was asked for steps before start(run).")
        if self._period == 0:  # per cent of a run of no steps
            return None
        return math.ceil((step // self._period + 1) * self._period)

    def due(self, step: int) -> bool:
        """Whether `step` is a due step. For `seconds`: whether it is time, and then it re-arms."""
        if self.kind != "seconds":
            return step > 0 and self.next_step(step - 1) == step
        if self._last is None:
            raise RuntimeError(f"{self!r}.due() was called before start(run).")
        now = self._clock()
        if due := now - self._last >= self.amount:
            self._last = now
        return due

    def __repr__(self) -> str:
        whole = self.amount.denominator == 1
        return f"Every({self.kind}={int(self.amount) if whole else float(self.amount)})"

    def _known(self, value: float | None, name: str) -> float:
        if value is None:
            give = "Give train() steps_per_epoch=..., or use" if self.kind == "epochs" else "Use"
            raise ValueError(
                f"{self!r} can't be turned into steps: the run does not know its {name}. "
                f"{give} Every(steps=...) or Every(seconds=...)."
            )
        if not value > 0:
            raise ValueError(f"{self!r}: the run's {name} must be more than 0, got {value!r}.")
        return value


class OnSteps:
    """Due at exactly the given steps. Goes where an `Every` does: `hook.every = OnSteps(100, 110)`.

    Raises ValueError for a step that is not a whole number of at least 1.
    """

    def __init__(self, *steps: int):
        for step in steps:
            if not isinstance(step, numbers.Integral) or isinstance(step, bool) or step < 1:
                raise ValueError(f"OnSteps({step!r}): a step must be a whole number, at least 1.")
        self.steps = tuple(sorted({int(step) for step in steps}))

    def start(self, run: RunInfo) -> None:
        """Nothing to find out: the steps are given."""

    def next_step(self, step: int) -> int | None:
        """The first given step after `step`, or None."""
        return next((one for one in self.steps if one > step), None)

    def due(self, step: int) -> bool:
        """Whether `step` was given."""
        return step in self.steps

    def __repr__(self) -> str:
        return f"OnSteps({', '.join(map(str, self.steps))})"


def check_trigger(every: Any, owner: str) -> None:
    """Raises ValueError for what is no trigger nor None, a bare number most likely.

    Args:
      every: the hook's attribute.
      owner: the hook's name, for the message.
    """
    if every is not None and not isinstance(every, Every | OnSteps):
        raise ValueError(f"{owner}: every={every!r} is not a trigger; write {_advice(every)}.")


def started_copy(every: Every | OnSteps, run: RunInfo) -> Every | OnSteps:
    """A hook's trigger, ready for a run. A copy: two hooks may have been given one."""
    every = copy.copy(every)
    every.start(run)
    return every


def _advice(value: Any) -> str:
    """What somebody who gave a bare number may have meant."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        return "Every(steps=100), say"
    return f"Every(steps={value!r})" if value % 1 == 0 else f"Every(epochs={value!r})"


def _exact(kind: str, value: float | Fraction) -> Fraction:
    """The number as it was written: 0.1 is 1/10, not the float nearest to it."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        rule = "a number"
    elif not 0 < float(value) < math.inf:
        rule = "more than 0, and finite"
    elif kind == "percent" and value > 100:
        rule = "at most 100"
    elif kind in _WHOLE and Fraction(str(value)).denominator != 1:
        rule = "a whole number"
    else:
        return Fraction(str(value))
    raise ValueError(f"Every({kind}={value!r}): {kind} must be {rule}.")


def _exact_epoch(steps: float, batch_size: int | None) -> Fraction:
    """1437 / 50 as a fraction: the float came from a division by the batch size."""
    written = Fraction(str(steps))
    near = written.limit_denominator(batch_size) if batch_size else written
    return near if math.isclose(near, steps, rel_tol=1e-12) else written
