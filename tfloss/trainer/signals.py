"""Signals that end training after a step, instead of in the middle of one. Host code.

    with caught("SIGTERM", "SIGINT", first=lambda name: print(name, "came")) as came:
        ...
        if "SIGINT" in came: ...

Python runs signal handlers between two of its own instructions. Within one instruction, TensorFlow
may compile for minutes, or wait forever for a generator. So a thread watches the signals too. It
reports a signal at once, and ends a script that does not react to a second one. After SIGTERM, it
ends a script whose main thread has run no Python code for a minute, or as many seconds as the
environment variable `TFLOSS_SIGTERM_GRACE` says.
"""

import contextlib
import ctypes
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tfloss.errors import Aborted, Preempted

PATIENCE = 1.0  # seconds that Python has to react to a second signal
GRACE_VARIABLE = "TFLOSS_SIGTERM_GRACE"
_GRACE = 60.0  # its default, in seconds


class Caught:
    """The signals that have come.

    Attributes:
      names: Names of the signals that were caught so far.
    """

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __contains__(self, name: str) -> bool:
        """Whether the signal of this name has come."""
        return name in self.names


@contextlib.contextmanager
def caught(*names: str, first: Callable[[str], None] = lambda name: None) -> Iterator[Caught]:
    """Inside the `with` the first of each of these signals is only noted.

    A second signal has its usual effect. A second SIGINT raises `tfloss.errors.Aborted` in the main
    thread. If Python does not get to raise it within a second, because TensorFlow is busy, the
    process ends with exit code 130; a prompt or a notebook continues. SIGTERM ends a process in
    which Python can't run with exit code 75: a second one within a second, and a single one when
    the grace period is over. The period starts again whenever the main thread has run Python code.
    Ignored signals stay ignored. Outside of the main thread nothing is caught, because Python
    allows it in no other thread.

    Args:
      *names: Names of signals, such as "SIGTERM".
      first: A function that is called in another thread with the name of each signal when it comes
        for the first time.

    Yields:
      The signals that have come.

    Raises:
      ValueError: `TFLOSS_SIGTERM_GRACE` is not a number of seconds.
    """
    found, grace = Caught(), _grace_seconds()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    before = {n: signal.getsignal(n) for n in (getattr(signal, name) for name in names)}
    before = {n: handler for n, handler in before.items() if handler is not signal.SIG_IGN}
    aborts = before.get(signal.SIGINT) is signal.default_int_handler
    through = threading.Event()
    read, write = socket.socketpair()
    write.setblocking(False)

    def note(number: int, frame: Any) -> None:
        found.names.add(signal.Signals(number).name)
        aborted = aborts and number == signal.SIGINT
        signal.signal(number, abort if aborted else before[number])
        if taken:
            write.send(bytes([number]))

    def abort(number: int, frame: Any) -> None:
        through.set()
        raise Aborted

    # The interpreter writes to it as soon as a signal comes, whatever Python is waiting for.
    others = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
    taken = others != -1  # an event loop has set it, for instance a notebook's
    if taken:
        signal.set_wakeup_fd(others)
    watcher = _Watcher(read, before, first, through if aborts else None, grace)
    watcher.start()
    for number in before:
        signal.signal(number, note)
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if not taken:
            signal.set_wakeup_fd(-1)
        write.close()
        watcher.join(2 * PATIENCE)
        read.close()


class _Watcher(threading.Thread):
    """Sees signals even if Python can't run their handlers, and ends a process that is blocked.

    Args:
      read: The socket that gets a byte for each signal.
      before: The caught signals, with their earlier handlers.
      first: A function of the name of a signal that comes for the first time.
      through: Is set when a second SIGINT has reached Python. None: it is not waited for.
      grace: Seconds that a blocked process has after SIGTERM.
    """

    def __init__(
        self,
        read: socket.socket,
        before: Mapping[int, Any],
        first: Callable[[str], None],
        through: threading.Event | None,
        grace: float,
    ):
        super().__init__(name="tfloss-signals", daemon=True)
        self._read, self._before, self._first = read, before, first
        self._through, self._grace = through, grace

    def run(self) -> None:
        """Watches until the other end of the socket is closed."""
        seen: list[int] = []
        life = _SignsOfLife()
        while True:
            self._read.settimeout(1.0 if signal.SIGTERM in seen else None)
            try:
                received = self._read.recv(1)
            except TimeoutError:
                if life.seconds_since() > self._grace:
                    why = f"by SIGTERM: Python was blocked for {self._grace:g} seconds"
                    _exit(Preempted.CODE, why)
                continue
            if not received:
                return
            number = received[0]
            if number in self._before and number not in seen:
                self._first(signal.Signals(number).name)
                life = _SignsOfLife()
            else:
                self._end_if_blocked(number)
            seen.append(number)

    def _end_if_blocked(self, number: int) -> None:
        """Ends the process at a second signal, if Python doesn't react to it."""
        if number == signal.SIGINT and self._through and not self._through.wait(PATIENCE):
            if not hasattr(sys, "ps1"):  # set where Python is interactive
                _exit(130, "at once by a second Ctrl-C")
        elif number == signal.SIGTERM and self._before.get(number) is signal.SIG_DFL:
            time.sleep(PATIENCE)  # Python would have ended the process
            _exit(Preempted.CODE, "at once by a second SIGTERM")


class _SignsOfLife:
    """Finds out when the main thread has last run Python code.

    It asks the interpreter to call a function there as soon as it can.
    """

    def __init__(self) -> None:
        self._last = time.monotonic()
        _alive.set()

    def seconds_since(self) -> float:
        """Returns the seconds since the last known sign of life, and asks for the next one."""
        if _alive.is_set():
            _alive.clear()
            self._last = time.monotonic()
            ctypes.pythonapi.Py_AddPendingCall(_set_alive, None)
        return time.monotonic() - self._last


def _set_alive_now(_: Any) -> int:
    _alive.set()
    return 0


_alive = threading.Event()
_set_alive = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(_set_alive_now)


def _grace_seconds() -> float:
    """Returns the seconds that a blocked run has after SIGTERM. Raises ValueError."""
    text = os.environ.get(GRACE_VARIABLE, "")
    try:
        seconds = float(text or _GRACE)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{GRACE_VARIABLE}={text!r} must be a number of seconds, such as 60.")
    return seconds


def _exit(code: int, why: str) -> None:
    """Ends the process at once, without cleaning up."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.write(f"tfloss: ended {why}.\n")
        sys.stderr.flush()
    os._exit(code)
