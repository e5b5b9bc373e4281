"""Where the time of a run goes: input, step, hooks, checkpoint. Host code."""

import contextlib
import time
from collections.abc import Callable, Iterator

KINDS = ("input", "step", "hooks", "checkpoint")


class Stopwatch:
    """Splits the time since it was started.

    What is neither waiting for data nor measured by `during` is the step's. On several workers
    the time is this worker's.

    Args:
      clock: seconds; injectable for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self.start()

    def start(self) -> None:
        """Forgets what it has measured."""
        self._began = self._clock()
        self._spent: dict[str, float] = {kind: 0.0 for kind in KINDS}
        self._inside = False

    def waited(self, seconds: float) -> None:
        """So long did steps wait for their batches."""
        self._spent["input"] += seconds

    @contextlib.contextmanager
    def during(self, kind: str) -> Iterator[None]:
        """What happens inside is "hooks" or "checkpoint"; the outermost says which."""
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
        """`{kind: seconds}` since the start; they sum to all of it."""
        spent = dict(self._spent)
        spent["step"] = max(self._clock() - self._began - sum(spent.values()), 0.0)
        return spent

    def fractions(self, since: dict[str, float] | None = None) -> dict[str, float]:
        """`{kind: fraction}` of the time since the start, or since an earlier `seconds()`."""
        now = self.seconds()
        spent = {kind: now[kind] - (since[kind] if since else 0.0) for kind in KINDS}
        total = max(sum(spent.values()), 1e-9)
        return {kind: min(max(value / total, 0.0), 1.0) for kind, value in spent.items()}
