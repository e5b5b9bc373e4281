"""The record of a whole run: which step was reached how many seconds after the process began."""

import os
import time
from collections.abc import Callable

PERIOD = 0.05  # seconds between two points of the record, at least
BRIEF = 10.0  # seconds after which a contender that can't win is stopped


class Enough(Exception):
    """A run is stopped, because its rate is known."""


def process_age() -> float:
    """Returns the seconds since this process began, from Linux's record of its start."""
    with open("/proc/self/stat") as file:
        ticks = int(file.read().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


class Record:
    """Points of a run, `[step, seconds since the process began]`, and its steady rate.

    Args:
      write: Function that is called with the step and the seconds of each point.
      reach: The step from which on the run may be stopped, as soon as its rate is known.
      seconds: Seconds over which the rate is measured.
      patience: Seconds since the process began after which `reach` isn't waited for.
      fast: Rate of the fastest contender so far. Less than half of it can't win: such a run is
        stopped after 10 s.

    Attributes:
      rate: Steps per second since the run became steady, or None before.
      steady: The seconds over which `rate` was measured.
      pause: The longest time between two calls, in seconds.
    """

    def __init__(
        self,
        write: Callable[[int, float], object],
        reach: int,
        seconds: float,
        patience: float,
        fast: float,
    ):
        self._write, self._reach, self._seconds = write, reach, seconds
        self._patience, self._fast = patience, fast
        self._start: tuple[int, float] | None = None
        self._written = (0, -PERIOD)
        self.last: tuple[int, float] | None = None
        self.rate: float | None = None
        self.steady = self.pause = 0.0

    def add(self, step: int, steady: bool = True) -> bool:
        """Records a step.

        Args:
          step: The number of updates that are done.
          steady: Whether nothing more is going to be compiled.

        Returns:
          Whether the run has told enough.
        """
        now = process_age()
        self.pause = max(self.pause, now - self.last[1] if self.last else 0.0)
        self.last = step, now
        # Every power of ten is a point, since its time stands in the table.
        if now - self._written[1] >= PERIOD or len(str(step)) > len(str(self._written[0])):
            self._write(step, now)
            self._written = step, now
        if not steady:
            return now > self._patience
        if self._start is None:
            self._start = step, now
        self.steady = now - self._start[1]
        if self.steady:
            self.rate = (step - self._start[0]) / self.steady
        slow = self.rate is not None and self.rate < self._fast / 2
        needed = min(BRIEF, self._seconds) if slow else self._seconds
        return self.steady >= needed and (slow or step >= self._reach or now > self._patience)

    def stop_if_enough(self, step: int) -> None:
        """Records a step of a contender that only an exception stops.

        Args:
          step: The number of updates that are done.

        Raises:
          Enough: The run has told enough.
        """
        if self.add(step):
            raise Enough
