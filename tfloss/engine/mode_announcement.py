"""The line that names the chosen mode, with the speed that the run then has. Host code.

    announcement = ModeAnnouncement(tuner, logger, clock)
    logs = announcement.run(lambda: engine.run(...))     # logs the line after a few seconds
    announcement.log()                                   # or at the end of the run

The speed while modes are compared is that of the steps alone. A run also waits for data, and writes
logs between short calls.
"""

import time
from collections.abc import Callable

from tfloss.common.logger import ChiefLogger
from tfloss.engine.autotune import Tuner, rate_text
from tfloss.engine.engine import StepLogs

SECONDS = 3.0  # in a shorter time, most batches may have been read while the step was compiled
_PAUSE = 0.1  # seconds between two calls from which on something else took them: an evaluation


class ModeAnnouncement:
    """Measures calls of steps, then logs the line. Host.

    Args:
      tuner: The tuner, which has decided.
      logger: Receives the line, once.
      clock: A function that returns the time in seconds.
    """

    def __init__(
        self, tuner: Tuner, logger: ChiefLogger, clock: Callable[[], float] = time.monotonic
    ):
        self._tuner, self._logger, self._clock = tuner, logger, clock
        self._steps, self._seconds = 0, 0.0
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
        if self._ended is not None and began - self._ended < _PAUSE:
            self._seconds += began - self._ended
        logs = call()
        self._steps += len(logs.rows())  # waits for the device
        self._ended = self._clock()
        self._seconds += self._ended - began
        if self._seconds >= SECONDS:
            self.log()
        return logs

    def log(self) -> None:
        """Logs the line, if that was not done."""
        if self._logged:
            return
        self._logged = True
        rate = rate_text(self._steps / max(self._seconds, 1e-9))
        speed = f", {rate} steps/s" if self._steps else ""
        self._logger.info(f"runs {self._tuner.title}{speed}{self._tuner.why}.")
