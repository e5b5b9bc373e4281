"""Shows where a run hangs: the stacks of all threads of all workers.

    Watchdog()                          # on several workers, it is a default hook
    Watchdog(seconds=300, exit=True)

A run hangs if a generator waits for a server, if a collective waits for another worker, or if a
disk does not answer. Nothing is printed then, and only the stacks show where it is.
"""

import contextlib
import faulthandler
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import IO

from tfloss.common.logger import logger
from tfloss.distribute.agreement import Agreement
from tfloss.hooks.base import Hook

EXIT_CODE = 70  # EX_SOFTWARE
_LEAST_SECONDS = 60.0
_BLOCKED_SECONDS = 30.0  # after which native code is assumed to keep Python from running
_OTHERS_SECONDS = 5.0  # for the other workers to write their stacks


class Watchdog(Hook, own=True):
    """Writes the stacks of all threads if no step has finished for too long. Host.

    Too long is `factor` times the longest time between two steps so far, evaluations and
    checkpoints included; at least a minute (or `seconds`, if that is shorter), at most `seconds`,
    but never less than twice the longest time. Before the second step it is `seconds`.

    The stacks go to standard error and to `stacks/worker_<number>.txt` in the workdir. If one of
    several workers waits for too long, all of them write their stacks. A worker whose native code
    keeps Python from running writes its own to standard error only, 30 seconds later.

    It uses `faulthandler.dump_traceback_later` of this process.

    Args:
      seconds: The longest time without a finished step.
      factor: The longest time, in multiples of the longest time between two steps so far.
      exit: Whether the process then ends, with exit code 70. Otherwise it waits on.
      clock: Function that returns seconds. Tests can replace it.
      leave: Function that ends the process, given the exit code. Tests can replace it.

    Raises:
      ValueError: `seconds` or `factor` is not positive and finite.
    """

    def __init__(
        self,
        seconds: float = 600.0,
        *,
        factor: float = 10.0,
        exit: bool = False,
        clock: Callable[[], float] = time.monotonic,
        leave: Callable[[int], None] = os._exit,
    ):
        for name, value in (("seconds", seconds), ("factor", factor)):
            if not 0 < value < math.inf:
                raise ValueError(f"Watchdog: {name}={value!r} must be positive and finite.")
        self.seconds, self.factor, self.exit = seconds, factor, exit
        self._clock, self._leave = clock, leave
        self._longest: float | None = None  # seconds between two steps
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._heard: Agreement | None = None
        self._writing = threading.Lock()
        self._written_at: int | None = None  # the step of the last stacks

    @property
    def limit(self) -> float:
        """Seconds without a finished step that are too long now."""
        if self._longest is None:
            return self.seconds
        least = max(min(_LEAST_SECONDS, self.seconds), self.factor * self._longest)
        return max(min(self.seconds, least), 2 * self._longest)

    def before_train(self) -> None:
        """Begins to watch."""
        agreement = self.trainer.agreement
        if self._heard is not agreement:
            self._heard = agreement
            agreement.listen("stacks", lambda rank, text: self._write(text))
        self._written_at = None
        self._stopped.clear()
        self._thread = threading.Thread(target=self._watch, name="tfloss-watchdog", daemon=True)
        self._thread.start()

    def after_train(self) -> None:
        """Stops watching."""
        self._stopped.set()
        faulthandler.cancel_dump_traceback_later()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
            self._thread = None

    def _watch(self) -> None:
        start = step = self.trainer.step
        since = self._clock()
        while not self._stopped.wait(min(1.0, self.limit / 20)):
            now, reached = self._clock(), self.trainer.step
            if reached != step:
                if step != start:  # the first step includes tracing
                    self._longest = max(self._longest or 0.0, now - since)
                step, since, self._written_at = reached, now, None
            self._arm(since + self.limit - now)
            if now - since >= self.limit and self._written_at != step:
                self._alarm(step, now - since)

    def _arm(self, seconds: float) -> None:
        """Lets a thread that needs no Python write the stacks, if this one can't run any more."""
        if self._written_at is None:
            file = sys.__stderr__ or 2
            with contextlib.suppress(OSError, ValueError):
                faulthandler.dump_traceback_later(
                    max(seconds, 0.0) + _BLOCKED_SECONDS, file=file, exit=self.exit
                )

    def _alarm(self, step: int, seconds: float) -> None:
        agreement = self.trainer.agreement
        worker = f" on worker {agreement.index}" if agreement.workers > 1 else ""
        usual = "" if self._longest is None else f" (the longest so far: {self._longest:.3g} s)"
        reason = f"no step has finished for {seconds:.0f} s after step {step}{worker}{usual}"
        faulthandler.cancel_dump_traceback_later()
        agreement.tell("stacks", reason)
        self._write(reason)
        if self.exit and not self._stopped.wait(_OTHERS_SECONDS):
            logger.error(f"{reason}; the process ends with exit code {EXIT_CODE}")
            self._leave(EXIT_CODE)

    def _write(self, reason: str) -> None:
        """Writes the stacks to standard error and to the workdir, once for each step."""
        with self._writing:
            if self._stopped.is_set() or self._written_at == self.trainer.step:
                return
            self._written_at = self.trainer.step
            path = self._path()
            where = "" if path is None else f"; they are in {path}, too"
            logger.error(f"{reason}. The stacks of all threads follow{where}:")
            with contextlib.suppress(OSError, ValueError):
                faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
            if path is None:
                return
            try:
                path.parent.mkdir(exist_ok=True)
                with path.open("a") as file:
                    self._write_to(file, reason)
            except OSError as error:
                logger.error(f"{path} can't be written: {error.strerror}")

    def _write_to(self, file: IO[str], reason: str) -> None:
        file.write(f"{datetime.now().astimezone().isoformat(timespec='seconds')}: {reason}\n")
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)
        file.write("\n")

    def _path(self) -> Path | None:
        workdir = self.trainer.workdir
        if workdir is None:
            return None
        return workdir / "stacks" / f"worker_{self.trainer.agreement.index}.txt"
