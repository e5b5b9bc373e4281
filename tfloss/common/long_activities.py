"""Tells when something takes long: after 5 seconds, and again after 10, 20, 40, ... Host code.

    long = LongActivities(lambda: print("still evaluating"))
    long.changed(seconds)                    # seconds() is how long it has taken
    long.changed(None)                       # it has ended

It needs no TensorFlow, so that the import of TensorFlow can take long, too.
"""

import contextlib
import threading
from collections.abc import Callable

_FIRST = 5.0  # seconds
_FACTOR = 2.0


class LongActivities:
    """Calls a function while something takes long, at growing intervals. Host.

    Args:
      report: The function. What it can't write to a stream is left out.
      thread: Whether a thread calls it. Otherwise `poll` does.
    """

    def __init__(self, report: Callable[[], None], *, thread: bool = True):
        self._report, self._uses_thread = report, thread
        self._seconds: Callable[[], float] | None = None
        self._due = _FIRST
        self._changed = threading.Condition(threading.RLock())
        self._thread: threading.Thread | None = None

    def changed(self, seconds: Callable[[], float] | None) -> None:
        """Begins or continues to time an activity.

        Args:
          seconds: Function that returns how long it has taken. None: there is none.
        """
        with self._changed:
            self._seconds = seconds
            if seconds is None:
                return  # the thread finds out when it wakes, at the latest
            self._due = _next_due(seconds())
            if self._thread is None and self._uses_thread:
                self._thread = threading.Thread(
                    target=self._run, name="tfloss-long-activities", daemon=True
                )
                self._thread.start()
            else:
                self._changed.notify()

    def poll(self) -> float:
        """Calls the function if it is due. Returns the seconds until it may be due again."""
        with self._changed:
            if self._seconds is None:
                return _FIRST
            took = self._seconds()
            if took >= self._due:
                with contextlib.suppress(OSError, ValueError):  # a full disk, a closed stream
                    self._report()
                self._due = _next_due(took)
            return self._due - took

    def stop(self) -> None:
        """Ends the thread."""
        with self._changed:
            self._seconds, self._thread = None, None
            self._changed.notify_all()

    def _run(self) -> None:
        with self._changed:
            while self._thread is threading.current_thread():
                self._changed.wait(self.poll())


def _next_due(seconds: float) -> float:
    due = _FIRST
    while due <= seconds:
        due *= _FACTOR
    return due
