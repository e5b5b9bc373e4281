"""The line that names the chosen mode, with the speed that the run then has. Host code.

    announcement = ModeAnnouncement(chosen, logger, clock)
    logs = announcement.run(lambda: engine.run(...))     # logs the line after a few seconds
    announcement.log()                                   # or at the end of the run

The speed while modes are compared is that of the steps alone. A run also waits for data, and writes
logs between short calls.
"""

import time
from collections.abc import Callable

from tfloss.common.logger import ChiefLogger
from tfloss.engine.autotune import Tuner
from tfloss.engine.engine import StepLogs
from tfloss.engine.mode_choice import Choice, rate_text

SECONDS = 3.0  # in a shorter time, most batches may have been read while the step was compiled
# A call of so many seconds that is so many times slower than the fastest one has compiled.
_LONG, _SLOW = 1.0, 3.0
_PAUSE = 0.1  # seconds between two calls from which on something else took them: an evaluation


class ModeAnnouncement:
    """Measures calls of steps, then logs the line. Host.

    Args:
      chosen: The tuner, which has decided, or what an earlier run chose.
      logger: Receives the line, once.
      clock: A function that returns the time in seconds.
    """

    def __init__(
        self,
        chosen: Tuner | Choice,
        logger: ChiefLogger,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._chosen, self._logger, self._clock = chosen, logger, clock
        self._calls: list[tuple[int, float]] = []  # steps and seconds, with the pause before
        self._ended: float | None = None  # the last call
        self._logged = False

    def run(self, call: Callable[[], StepLogs]) -> StepLogs:
        """Runs a call of steps, and measures it until the line is logged.

        Args:
          call: Function that runs the steps.
        """
        if self._logged:
            return call()
        began = self._clock()
        short = self._ended is not None and began - self._ended < _PAUSE
        pause = began - self._ended if short and self._ended is not None else 0.0
        logs = call()
        steps = len(logs.rows())  # waits for the device
        self._ended = self._clock()
        self._calls.append((steps, self._ended - began + pause))
        if len(self._calls) > 1 and self._measured()[1] >= SECONDS:
            self.log()
        return logs

    def log(self) -> None:
        """Logs the line, if that was not done."""
        if self._logged:
            return
        self._logged = True
        steps, seconds = self._measured()
        speed = f", {rate_text(steps / max(seconds, 1e-9))} steps/s" if steps else ""
        self._logger.info(f"runs {self._chosen.title}{speed}{self._chosen.why}.")

    def _measured(self) -> tuple[int, float]:
        """Returns steps and seconds of the calls that have not compiled for new shapes."""
        fastest = min((seconds / steps for steps, seconds in self._calls), default=0.0)
        usual = [
            (steps, seconds)
            for steps, seconds in self._calls
            if seconds < _LONG or seconds / steps <= _SLOW * fastest
        ]
        return sum(steps for steps, _ in usual), sum(seconds for _, seconds in usual)
