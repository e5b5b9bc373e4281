"""How fast steps have been in the last seconds, for the progress line. Host code.

    speed = StepSpeed(clock, window=5.0)
    speed.completed(137)
    speed.activity(activity.current())       # at each change: an evaluation, a compilation, ...
    speed.steps_per_second, speed.overhead

The time of activities between the steps doesn't make the steps slower, but the run.
"""

from collections import deque
from collections.abc import Callable

from tfloss.common.activity import Activity


class StepSpeed:
    """Measures the steps of the last seconds. Host.

    Args:
      clock: Function that returns seconds.
      window: Seconds over which the speed is averaged, at least. It is that of the last call of
        steps if the call took longer.

    Attributes:
      steps_per_second: The speed of the last seconds, without the time of activities. None while
        it isn't known.
      seconds_between_calls: Time of the last interval between two calls of `completed`.
    """

    def __init__(self, clock: Callable[[], float], window: float):
        self._clock, self._window = clock, window
        self.restart(0)

    def restart(self, step: int) -> None:
        """Forgets all times, and starts at a step."""
        self.steps_per_second: float | None = None
        self.seconds_between_calls = 0.0
        self._since: float | None = None  # when the current activities began
        self._steps_run = False  # whether steps run during one of them
        self._paused = 0.0  # seconds in activities between steps
        self._lost = 0.0  # seconds in activities with steps, which happen once
        self._started = self._clock()
        self._first = (self._started, step)
        self._times: deque[tuple[float, int]] = deque([self._first])  # (busy seconds, step)

    def activity(self, current: Activity | None) -> None:
        """Records that the activity has changed.

        Args:
          current: The activity from now on, or None.
        """
        now = self._clock()
        if current is None:
            if self._since is None:
                return
            took, self._since = now - self._since, None
            if self._steps_run:
                self._lost += took
                self._times.clear()  # what these steps took isn't known
            else:
                self._paused += took
            self._steps_run = False
            return
        self._since = now if self._since is None else self._since
        self._steps_run = self._steps_run or current.runs_steps

    def completed(self, step: int) -> None:
        """Records the number of completed steps.

        Args:
          step: The number of completed updates.
        """
        now = self._clock() - self._paused - self._lost
        while len(self._times) > 1 and self._times[1][0] <= now - self._window:
            self._times.popleft()
        self._times.append((now, step))
        (began, first), *_ = self._times
        if len(self._times) > 1:
            self.seconds_between_calls = now - self._times[-2][0]
        if now > began and step > first:
            self.steps_per_second = (step - first) / (now - began)
        if self._times[0] is self._first:  # the first calls take longer; later speeds omit them
            self._times.popleft()

    @property
    def overhead(self) -> float:
        """The time of the run, compared with that of its steps alone, at least 1."""
        busy = self._clock() - self._started - self._paused - self._lost
        return 1.0 + self._paused / busy if busy > 0 else 1.0
