"""What a process is doing beside running steps, for the line on the terminal. Host code.

    with activity.during("evaluating"):
        ...
    activity.current()                       # "evaluating", or None

    with activity.watched(redraw):           # redraw() is called at each change
        ...

It needs no TensorFlow, so that the import of TensorFlow is an activity too. As a decorator,
`during` covers a whole function.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Generator


@dataclasses.dataclass(eq=False)
class Activity:
    """Something that takes time.

    Attributes:
      text: What it is, such as "evaluating".
      runs_steps: Whether training steps run meanwhile, as in a call that compiles.
    """

    text: str
    runs_steps: bool = False


_activities: list[Activity] = []  # from the outermost to the innermost
_watchers: list[Callable[[], None]] = []


@contextlib.contextmanager
def during(text: str, *, runs_steps: bool = False) -> Generator[None]:
    """Tells the watcher that something takes time, inside of the `with`.

    Args:
      text: What it is, such as "evaluating".
      runs_steps: Whether training steps run meanwhile.

    Yields:
      None.
    """
    activity = Activity(text, runs_steps)
    _activities.append(activity)
    _tell()
    try:
        yield
    finally:
        _activities.remove(activity)
        _tell()


def current() -> Activity | None:
    """Returns the innermost activity, or None."""
    return _activities[-1] if _activities else None


class Timer:
    """Tells how long the innermost activity has taken, the ones inside of it included.

    Args:
      clock: Function that returns seconds.
    """

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._began: dict[Activity, float] = {}

    def current(self) -> tuple[Activity, Callable[[], float]] | None:
        """Returns the innermost activity and a function that returns its seconds, or None.

        Call it at each change: an activity is timed from the first call on that meets it.
        """
        now = self._clock()
        self._began = {one: self._began.get(one, now) for one in _activities}
        if not self._began:
            return None
        found, began = list(self._began.items())[-1]
        return found, lambda: self._clock() - began


@contextlib.contextmanager
def watched(changed: Callable[[], None]) -> Generator[None]:
    """Calls a function at each change of the activity, in place of earlier watchers.

    Args:
      changed: The function. It must not raise an error.

    Yields:
      None.
    """
    _watchers.append(changed)
    try:
        yield
    finally:
        _watchers.remove(changed)


def _tell() -> None:
    if _watchers:
        _watchers[-1]()
