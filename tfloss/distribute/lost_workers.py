"""Ends a worker, within a bounded time, when another one is gone. Host code.

TensorFlow's collectives wait for all workers. So a worker that is killed, or that fails, leaves the
others waiting. `LostWorkers` listens to the control channel, logs which worker it was, and aborts
the collectives of this process: those that wait fail at once, and so do all later ones.

A worker that waits for something else can't be woken. While it is in a call of the trainer, its
process ends `EXIT_SECONDS` later, with the stacks of all threads.

An error that ends this worker is told to the others, whether a call of the trainer raises it or the
script around it. An error of a collective is explained by what has happened to another worker.
"""

import contextlib
import faulthandler
import os
import sys
import threading
from collections.abc import Callable, Generator
from types import TracebackType

import tensorflow as tf

from tfloss.common.logger import logger
from tfloss.distribute.control_channel import ControlChannel
from tfloss.errors import WorkerError

# What collectives raise if another worker is gone.
COLLECTIVE_ERRORS = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.InternalError,
)
EXIT_SECONDS = 60.0  # from the loss of a worker to the end of this process
# An error is often one of all workers. They raise it by themselves, and may save before they end.
_ERROR_SECONDS = 10.0
_ENDED_SECONDS = 5.0  # collectives that the other worker has finished may be under way here
_REASON_SECONDS = 5.0  # in which the reason of an error of a collective arrives
_EXIT_CODE = 1


class LostWorkers:
    """What this worker does when another one is gone.

    Args:
      channel: The control channel.
      abort: Aborts the collectives of this process. It is given the reason.
      leave: Ends this process at once. It is given the exit code.
    """

    def __init__(
        self,
        channel: ControlChannel,
        abort: Callable[[str], None],
        leave: Callable[[int], None] = os._exit,
    ):
        self._channel, self._abort, self._leave = channel, abort, leave
        self._lock = threading.Lock()
        self._begun = False  # whether a call of the trainer has ended
        self._calls = 0  # calls of the trainer that are under way
        self._failed = False  # whether the current call has failed on this worker
        channel.listen("lost", self._lost)
        channel.listen("ended", self._ended)
        channel.listen("error", self._error)

    def report_uncaught(self) -> None:
        """From now on, the error that ends this process is told to the other workers, too."""
        hook = sys.excepthook

        def report(
            kind: type[BaseException], error: BaseException, trace: TracebackType | None
        ) -> None:
            explained = self.explained(error)
            self.report(explained)
            hook(kind, error, trace)
            if explained is not error:
                logger.error(str(explained))

        sys.excepthook = report

    @contextlib.contextmanager
    def call(self) -> Generator[None]:
        """Inside the `with` this worker depends on all others."""
        with self._lock:
            self._calls += 1
            self._failed = False
        try:
            yield
        except BaseException as error:
            if self._failed:
                raise
            explained = self.explained(error)
            self.report(explained)
            if explained is error:
                raise
            raise explained from error
        finally:
            with self._lock:
                self._calls -= 1
                self._begun = True

    def report(self, error: BaseException) -> None:
        """Tells the other workers of an error of this one."""
        with self._lock:
            self._failed = True
        self._channel.tell("error", error_text(error))

    def explained(self, error: BaseException) -> BaseException:
        """Finds out whether another worker has caused an error.

        Args:
          error: An error of this worker.

        Returns:
          The error to raise: the same, or a `WorkerError` that names the worker and what has
          happened to it.
        """
        if isinstance(error, WorkerError) or not isinstance(error, Exception):
            return error
        if self._channel.verdict:
            return WorkerError(self._channel.verdict)
        failure = ""
        if isinstance(error, COLLECTIVE_ERRORS):
            failure = self._channel.failure(_REASON_SECONDS)
        elif isinstance(error, tf.errors.DeadlineExceededError):
            me = self._channel.name(self._channel.rank)
            failure = self._channel.failure() or (
                f"{me[0].upper()}{me[1:]} has waited {self._channel.timeout:g} s in a collective "
                "of TensorFlow: another worker is still computing, or hangs. The stacks of its "
                "threads follow on its standard error if it does not end by itself. If a worker "
                "may take longer, set TFLOSS_WORKER_TIMEOUT=SECONDS"
            )
        if not failure:
            return error
        return WorkerError(
            f"{failure}. All workers must end. Start them again; they continue from the last "
            "checkpoint."
        )

    def _depends(self) -> bool:
        """Whether this worker needs the others to get any further."""
        with self._lock:
            return self._calls > 0 and not self._failed

    def _lost(self, rank: int, reason: str) -> None:
        with self._lock:
            building = not self._begun and not self._failed
        ends = f"; this worker ends within {EXIT_SECONDS:g} s"
        depends = building or self._depends()
        logger.error(f"{self._channel.name(rank)}: {reason}{ends if depends else ''}")
        self._abort_because(rank, reason)
        _later(EXIT_SECONDS, lambda: self._end(rank, building))

    def _ended(self, rank: int, reason: str) -> None:
        def end() -> None:
            if self._depends():
                logger.error(f"{self._channel.failure()}; this worker ends, too")
                _later(EXIT_SECONDS - _ENDED_SECONDS, lambda: self._end(rank))
            self._abort_because(rank, reason)

        _later(_ENDED_SECONDS, end)

    def _error(self, rank: int, text: str) -> None:
        def end() -> None:
            if self._depends() and self._channel.failure():
                logger.error(f"{self._channel.failure()}; this worker ends, too")
                self._abort_because(rank, text)
                _later(EXIT_SECONDS - _ERROR_SECONDS, lambda: self._end(rank))

        _later(_ERROR_SECONDS, end)

    def _abort_because(self, rank: int, reason: str) -> None:
        # Without collectives there is nothing to abort.
        with contextlib.suppress(Exception):
            self._abort(self._channel.failure() or f"{self._channel.name(rank)}: {reason}")

    def _end(self, rank: int, building: bool = False) -> None:
        """Ends the process, unless it has found a way out of what it waited for."""
        with self._lock:
            still = building and not self._begun and not self._failed
        if not (still or self._depends()) or hasattr(sys, "ps1"):  # a prompt or a notebook stays
            return
        logger.error(
            f"{self._channel.name(rank)} is gone, and this worker has not ended by itself. It is "
            "ended now. Its threads are at:"
        )
        with contextlib.suppress(OSError, ValueError):
            faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
            sys.stdout.flush()
        self._leave(_EXIT_CODE)


def error_text(error: BaseException) -> str:
    """Describes an error to the other workers: its class and its message."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else repr(error)


def _later(seconds: float, function: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, function)
    timer.daemon = True
    timer.start()
