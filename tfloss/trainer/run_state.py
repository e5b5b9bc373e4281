"""What a run is at the moment: its step, why it stops, where its time goes. Host code.

One `RunState` belongs to one `Trainer`. The loop moves it on, hooks ask it to stop, resuming sets
its step; everybody else reads it.
"""

import time
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

from tfloss.common.logger import ChiefLogger
from tfloss.distribute.agreement import Agreement
from tfloss.hooks.run_info import RunInfo
from tfloss.trainer.log_window import LogWindow
from tfloss.trainer.stopwatch import Stopwatch
from tfloss.trainer.workdir_lock import WorkdirLock


class RunState:
    """The state of a trainer's run on the host.

    Args:
      counter: The int64 variable that counts completed updates on the device.
      agreement: What the workers decide together.
      workdir: The directory of the run, or None.
      log_every: Steps between logs.
      log_every_step: Whether every step's values are logged, and not their means.
      clock: A function that returns the time in seconds.

    Attributes:
      step: Completed updates, as far as the host knows. The counter may be ahead during a call.
      info: What hooks can know about the current call of `Trainer.train`.
      error: The error that the call ended with, or None.
      stop_reason: Why the call is to stop before its last step, or None.
      rewound: Whether a checkpoint was restored that is not the newest, and no step trained since.
      window: The steps that are not logged yet.
      stopwatch: Where the time of the call goes.
      logger: Receives messages for people, on the first worker.
      lock: The lock on the workdir, which is held from the first call of `Trainer.train`.
    """

    def __init__(
        self,
        counter: tf.Variable,
        agreement: Agreement,
        workdir: Path | None = None,
        *,
        log_every: int,
        log_every_step: bool,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._counter = counter
        self.agreement, self.clock, self.log_every = agreement, clock, log_every
        self.logger = ChiefLogger(agreement.chief)
        self.window = LogWindow(log_every, log_every_step, clock)
        self.stopwatch: Stopwatch = self.window.stopwatch
        self.lock = WorkdirLock(workdir, agreement)
        self.step = 0
        self.info = RunInfo(0, 0)
        self.error: BaseException | None = None
        self.stop_reason: str | None = None
        self.rewound = False

    def begin(self, info: RunInfo) -> None:
        """Begins a call of `Trainer.train`."""
        self.info = info
        self.error = self.stop_reason = None

    def start_clock(self) -> None:
        """Starts to measure: the hooks have begun, and the first step follows."""
        self.stopwatch.start()
        self.window.start(self.step)

    def stop(self, reason: str) -> None:
        """Asks the loop to end after the current step. The first reason counts."""
        self.stop_reason = self.stop_reason or reason

    def read_counter(self) -> int:
        """Takes the step from the device: a call of the engine may not have returned.

        Returns:
          How many steps were completed since the host last knew.
        """
        before, self.step = self.step, int(self._counter.numpy())
        return self.step - before
