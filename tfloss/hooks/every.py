"""Triggers: when a hook is due, in steps, seconds, epochs, examples or percent of the run.

    every = Every(epochs=0.5)
    every.start(run)                      # the trainer does this at the start of a run
    every.next_step(137), every.due(138)

All of this module runs on the host, between calls of the training step.
"""

import copy
import math
import numbers
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from tfloss.hooks.run_info import RunInfo
from tfloss.inspect.traceback_filtering import filtered_tracebacks

_KINDS = ("steps", "seconds", "epochs", "examples", "percent")
_INTEGER_KINDS = ("steps", "examples")


class Every:
    """A period in exactly one unit. Host.

    Steps are counted from step 0 of training, not from the step where this run started. Periods
    are exact fractions: the k-th due step is `ceil(k * period)`. So a resumed run is due at the
    same steps as an uninterrupted one, and rounding errors don't add up.

    `Every(seconds=...)` remembers when it was last due. The trainer makes a copy for each hook.

    Args:
      steps: Number of updates, an integer.
      seconds: Seconds of `clock`, which is read between calls of the training step.
      epochs: Number of epochs of `RunInfo.steps_per_epoch` steps. Fractions are allowed.
      examples: Number of examples over all replicas, an integer. Needs `RunInfo.batch_size`.
      percent: Percentage of `RunInfo.steps`, at most 100.
      clock: Function that returns seconds, for `seconds`. Tests can replace it.

    Attributes:
      kind: The unit: "steps", "seconds", "epochs", "examples" or "percent".
      amount: The number of units, as an exact fraction.

    Raises:
      ValueError: Not exactly one unit is given, it isn't given by name, or it isn't positive.
    """

    @filtered_tracebacks
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
        """Computes the period in steps for a run, or starts the clock.

        Args:
          run: The run.

        Raises:
          ValueError: The run doesn't know its batch size or the length of its epochs.
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
        """Returns the first due step after a step.

        Args:
          step: Number of updates that are done.

        Returns:
          The step; None for `seconds`, where it is unknown.

        Raises:
          RuntimeError: `start` was not called.
        """
        if self.kind == "seconds":
            return None
        if self._period is None:
            raise RuntimeError(f"{self!r}.next_step() was called before start(run).")
        if self._period == 0:  # percent of a run of 0 steps
            return None
        return math.ceil((step // self._period + 1) * self._period)

    def progress(self, step: int) -> tuple[int, int]:
        """Returns the number of complete periods at a step, and the steps since the last of them.

        Args:
          step: Number of updates that are done.

        Raises:
          RuntimeError: `start` was not called, or the unit is seconds.
        """
        if not self._period:
            raise RuntimeError(f"{self!r}.progress() needs start(run), and a number of steps.")
        periods = int(step // self._period)
        return periods, step - math.ceil(periods * self._period)

    def due(self, step: int) -> bool:
        """Returns whether a step is due. For `seconds`, a due call starts the next period.

        Args:
          step: Number of updates that are done.

        Returns:
          Whether it is due.

        Raises:
          RuntimeError: `start` was not called.
        """
        if self.kind != "seconds":
            return step > 0 and self.next_step(step - 1) == step
        if self._last is None:
            raise RuntimeError(f"{self!r}.due() was called before start(run).")
        now = self._clock()
        if due := now - self._last >= self.amount:
            self._last = now
        return due

    def __repr__(self) -> str:
        integer = self.amount.denominator == 1
        return f"Every({self.kind}={int(self.amount) if integer else float(self.amount)})"

    def _known(self, value: float | None, name: str) -> float:
        if value is None:
            give = "Give train() steps_per_epoch=..., or use" if self.kind == "epochs" else "Use"
            raise ValueError(
                f"{self!r} can't be turned into steps: the run doesn't know its {name}. "
                f"{give} Every(steps=...) or Every(seconds=...)."
            )
        if not value > 0:
            raise ValueError(f"{self!r}: the run's {name} must be positive, got {value!r}.")
        return value


class OnSteps:
    """A trigger for given steps, in place of an `Every`. Host.

        hook.every = OnSteps(100, 110)

    Args:
      *steps: The steps, integers of at least 1.

    Attributes:
      steps: The steps in increasing order, each once.

    Raises:
      ValueError: A step is not an integer of at least 1.
    """

    def __init__(self, *steps: int):
        for step in steps:
            if not _is_number(step, numbers.Integral) or step < 1:
                raise ValueError(f"OnSteps({step!r}): a step must be an integer of at least 1.")
        self.steps = tuple(sorted({int(step) for step in steps}))

    def start(self, run: RunInfo) -> None:
        """Does nothing: the steps are known."""

    def next_step(self, step: int) -> int | None:
        """Returns the first given step after a step, or None.

        Args:
          step: Number of updates that are done.

        Returns:
          The step; None if there is none.
        """
        return next((given for given in self.steps if given > step), None)

    def due(self, step: int) -> bool:
        """Returns whether a step is one of those given.

        Args:
          step: Number of updates that are done.

        Returns:
          Whether it is due.
        """
        return step in self.steps

    def __repr__(self) -> str:
        return f"OnSteps({', '.join(map(str, self.steps))})"


def check_trigger(every: Any, owner: str) -> None:
    """Checks that a hook's `every` is a trigger or None. A bare number is a likely mistake.

    Args:
      every: The attribute of the hook.
      owner: Class name of the hook, for the message.

    Raises:
      ValueError: It is something else.
    """
    if every is not None and not isinstance(every, Every | OnSteps):
        raise ValueError(f"{owner}: every={every!r} is not a trigger; write {_advice(every)}.")


def started_copy(every: Every | OnSteps, run: RunInfo) -> Every | OnSteps:
    """Returns a copy of a hook's trigger, started for a run. Two hooks may have the same one.

    Args:
      every: The trigger.
      run: The run.

    Returns:
      The started copy.

    Raises:
      ValueError: The run doesn't know its batch size or the length of its epochs.
    """
    every = copy.copy(every)
    every.start(run)
    return every


def _advice(value: Any) -> str:
    """Returns the likely meaning of a bare number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        return "Every(steps=100), for example"
    return f"Every(steps={value!r})" if value % 1 == 0 else f"Every(epochs={value!r})"


def _is_number(value: object, kind: type) -> bool:
    """Returns whether a value is a number of a kind. Python counts bools as numbers, too."""
    return isinstance(value, kind) and not isinstance(value, bool)


def _exact(kind: str, value: float | Fraction) -> Fraction:
    """Returns the number as written: 0.1 is 1/10, not the nearest float."""
    if not _is_number(value, numbers.Real):
        rule = "a number"
    elif not 0 < float(value) < math.inf:
        rule = "positive and finite"
    elif kind == "percent" and value > 100:
        rule = "at most 100"
    elif kind in _INTEGER_KINDS and Fraction(str(value)).denominator != 1:
        rule = "an integer"
    else:
        return Fraction(str(value))
    raise ValueError(f"Every({kind}={value!r}): {kind} must be {rule}.")


def _exact_epoch(steps: float, batch_size: int | None) -> Fraction:
    """Returns 1437 / 50 as a fraction. The float came from a division by the batch size."""
    written = Fraction(str(steps))
    near = written.limit_denominator(batch_size) if batch_size else written
    return near if math.isclose(near, steps, rel_tol=1e-12) else written
