"""Signals that end training after a step, instead of in the middle of one. Host code.

    with caught("SIGTERM", "SIGINT", first=lambda name: print(name, "came")) as came:
        ...
        if "SIGINT" in came: ...

Python runs its handlers between two of its own instructions, and TensorFlow may compile for minutes
within one. So a thread watches too: it says at once that a signal has come, and it ends a script
that a second Ctrl-C doesn't get through to.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator

from tfloss.errors import Aborted

PATIENCE = 1.0  # seconds that a second Ctrl-C waits for Python


class Caught:
    """Which signals have come.

    Attributes:
      names: those that were caught so far.
    """

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.names


@contextlib.contextmanager
def caught(*names: str, first: Callable[[str], None] = lambda name: None) -> Iterator[Caught]:
    """Inside, the first of each of these signals is only noted; a second one does what it did.

    A second SIGINT raises `tfloss.errors.Aborted` where it comes. Where it doesn't get through
    within a second, because TensorFlow is busy, it ends the process with exit code 130, except from
    a prompt or a notebook. What is ignored stays ignored. Outside of the main thread nothing is
    caught: Python lets no other thread do it.

    Args:
      *names: "SIGTERM", ...
      first: called with the name of each signal as it comes first, in another thread.
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

    def note(number, frame):
        found.names.add(signal.Signals(number).name)
        aborted = aborts and number == signal.SIGINT
        signal.signal(number, abort if aborted else before[number])
        if taken:
            write.send(bytes([number]))

    def abort(number, frame):
        through.set()
        raise Aborted

    def watch():
        seen = []
        while said := read.recv(1):
            number = said[0]
            if number in before and number not in seen:
                first(signal.Signals(number).name)
            elif number == signal.SIGINT and aborts and not through.wait(PATIENCE):
                _exit_now()
            seen.append(number)

    # The interpreter writes there as soon as a signal comes, whatever Python is waiting for.
    others = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
    taken = others != -1  # an event loop's, of a notebook, say
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
    """Ends a script without asking anybody; a prompt or a notebook goes on."""
    if hasattr(sys, "ps1"):  # which Python has where it is interactive
        return
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.write("tfloss: ended at once by a second Ctrl-C.\n")
    os._exit(130)
