"""Signals that end training after a step, instead of in the middle of one. Host code.

    with caught("SIGTERM", "SIGINT", first=lambda name: print(name, "came")) as came:
        ...
        if "SIGINT" in came: ...

Python runs signal handlers between two of its own instructions, and TensorFlow may compile for
minutes within one instruction. So a thread watches the signals too. It reports a signal at once,
and it ends a script that does not react to a second Ctrl-C.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tfloss.errors import Aborted

PATIENCE = 1.0  # seconds that Python has to react to a second Ctrl-C


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
    process ends with exit code 130; a prompt or a notebook continues. Ignored signals stay ignored.
    Outside of the main thread nothing is caught, because Python allows it in no other thread.

    Args:
      *names: Names of signals, such as "SIGTERM".
      first: A function that is called in another thread with the name of each signal when it comes
        for the first time.

    Yields:
      The signals that have come.
    """
    found = Caught()
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

    def watch() -> None:
        seen: list[int] = []
        while received := read.recv(1):
            number = received[0]
            if number in before and number not in seen:
                first(signal.Signals(number).name)
            elif number == signal.SIGINT and aborts and not through.wait(PATIENCE):
                _exit_now()
            seen.append(number)

    # The interpreter writes to it as soon as a signal comes, whatever Python is waiting for.
    others = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
    taken = others != -1  # an event loop has set it, for instance a notebook's
    if taken:
        signal.set_wakeup_fd(others)
    watcher = threading.Thread(target=watch, name="tfloss-signals", daemon=True)
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


def _exit_now() -> None:
    """Ends a script at once, without cleaning up; a prompt or a notebook continues."""
    if hasattr(sys, "ps1"):  # set where Python is interactive
        return
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.write("tfloss: ended at once by a second Ctrl-C.\n")
    os._exit(130)
