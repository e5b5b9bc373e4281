"""Where the time of a run goes: input, step, hooks, checkpoint. Host code."""

import contextlib
import time
from collections.abc import Callable, Iterator

KINDS = ("input", "step", "hooks", "checkpoint")


class Stopwatch:
    """Splits the time since it was started into input, step, hooks and checkpoint.

    Time that is neither spent waiting for data nor measured by `during` counts as the step's. With
    several workers it is the time of this worker.

    Args:
      clock: A function that returns the time in seconds; injectable for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self.start()

    def start(self) -> None:
        """Starts at zero."""
        self._began = self._clock()
        self._spent: dict[str, float] = {kind: 0.0 for kind in KINDS}
        self._inside = False

    def waited(self, seconds: float) -> None:
        """Adds time that steps spent waiting for their batches."""
        self._spent["input"] += seconds

    @contextlib.contextmanager
    def during(self, kind: str) -> Iterator[None]:
        """Counts the time inside the `with` as that of one kind. The outermost `with` counts.

        Args:
          kind: "hooks" or "checkpoint".

        Yields:
          Nothing.
        """
        if self._inside:
            yield
            return
        began, self._inside = self._clock(), True
        try:
            yield
        finally:
            self._inside = False
            self._spent[kind] += self._clock() - began

    def seconds(self) -> dict[str, float]:
        """Returns `{kind: seconds}` since the start. They sum to the whole time."""
        spent = dict(self._spent)
        spent["step"] = max(self._clock() - self._began - sum(spent.values()), 0.0)
        return spent

    def fractions(self, since: dict[str, float] | None = None) -> dict[str, float]:
        """Returns `{kind: fraction}` of the time.

        Args:
          since: An earlier result of `seconds()`. None: since the start.
        """
        now = self.seconds()
        spent = {kind: now[kind] - (since[kind] if since else 0.0) for kind in KINDS}
        total = max(sum(spent.values()), 1e-9)
        return {kind: min(max(value / total, 0.0), 1.0) for kind, value in spent.items()}
