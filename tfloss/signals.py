"""Signals that end training after a step, instead of in the middle of one. Host code."""

import contextlib
import signal
import threading
from collections.abc import Iterator


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
def caught(*names: str) -> Iterator[Caught]:
    """Inside, the first of each of these signals is only noted; a second one does what it did.

    Outside of the main thread nothing is caught: Python lets no other thread do it.
    """
    found = Caught()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    before = {name: signal.getsignal(getattr(signal, name)) for name in names}

    def note(number, frame):
        name = signal.Signals(number).name
        found.names.add(name)
        signal.signal(number, before[name])

    for name in names:
        signal.signal(getattr(signal, name), note)
    try:
        yield found
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
