"""Shows how far training is: a live line on a terminal, plain lines elsewhere.

    Progress()
    # step 137/2000  total 0.4321  cross_entropy 0.4  |  1,234 examples/s  38.6 steps/s  ETA 0:48

Where training waits for data a twentieth of the time or more, the line says so, `input 12%`; the
last line says what hooks and checkpoints took, too. Evaluation results are a line of their own:
`step 137  val/accuracy 0.981`.
"""

import functools
import math
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TextIO

from tfloss.hooks._terminal import PlainLines, TerminalLine
from tfloss.hooks.base import Hook
from tfloss.hooks.evaluate import Evaluate
from tfloss.hooks.every import Every

_WINDOW = 30.0  # seconds that the speed is a mean over
_SLOW_INPUT = 0.05  # from this share of the time on, waiting for data is shown
_LOSSES = 8  # shown by name; a model with more has TensorBoard


class Progress(Hook):
    """Step, losses by name, speed and the time left; evaluation results as they come. Host.

    The live line fits the terminal: narrow ones have no bar, fewer losses and no speed. It
    reads the host's own step count and values already logged, never the device. Losses
    are those last logged, so with `log_every=100` they change every 100 steps.

    Args:
      seconds: the least time between two plain lines; a terminal is redrawn every 0.2 s.
      stream: where to; the default is stderr.
      console: a `rich.console.Console` to draw on, whatever the stream is.
      clock: seconds; injectable for tests.
    """

    chief_only = True
    async_logs = True

    def __init__(
        self,
        *,
        seconds: float = 10.0,
        stream: TextIO | None = None,
        console: Any = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        out = stream if stream is not None else sys.stderr
        if console is None and out.isatty():
            from rich.console import Console

            console = Console(file=out)
        live = console is not None and not console.is_dumb_terminal
        self._view = TerminalLine(console) if live else PlainLines(out)
        self.every = Every(seconds=0.2 if live else seconds, clock=clock)
        self._clock = clock

    def before_train(self) -> None:
        run = self.trainer.run
        self._losses: dict[str, float] = {}
        self._waiting = 0.0
        self._began = (self._clock(), run.start)
        self._seen: deque[tuple[float, int]] = deque([self._began])
        names = {hook.name for hook in self.trainer.hooks if isinstance(hook, Evaluate)}
        self._evaluations = tuple(f"{name}/" for name in sorted(names | {"val"}))
        self._view.start(run.start, run.steps)

    def on_log(self, step, scalars, summaries) -> None:
        losses = {
            name.removeprefix("losses/"): value
            for name, value in scalars.items()
            if name.startswith("losses/")
        }
        if losses:
            self._losses = losses
        self._waiting = scalars.get("input/wait_fraction", self._waiting)
        results = [
            f"{name} {_number(value)}"
            for name, value in scalars.items()
            if name.startswith(self._evaluations)
        ]
        if results:
            self._view.say("  ".join([f"step {step}", *results]))

    def after_step(self, step: int) -> None:
        now = self._clock()
        while len(self._seen) > 1 and self._seen[1][0] <= now - _WINDOW:
            self._seen.popleft()
        self._seen.append((now, step))
        rate = _rate(self._seen[0], (now, step))
        if self._seen[0] is self._began:  # the first calls compile; later lines leave them out
            self._seen.popleft()
        left = self.trainer.run.steps - step
        self._show(step, rate, f"ETA {_duration(left / rate)}" if rate else "")

    def after_train(self) -> None:
        step, now = self.trainer.step, self._clock()
        if step > self._began[1]:
            took = f"took {_duration(now - self._began[0])}{self._split()}"
            if self.trainer.error is not None:
                took += f"  ended by {type(self.trainer.error).__name__}"
            self._show(step, _rate(self._began, (now, step)), took)
        self._view.stop()

    def _split(self) -> str:
        """Where the time of the run went, if not into steps alone."""
        share = self.trainer.stopwatch.fractions()
        kinds = ("input", "hooks", "checkpoint")
        shown = [f"{kind} {share[kind]:.0%}" for kind in kinds if share[kind] >= 0.01]
        return f" ({', '.join(shown)})" if shown else ""

    def _show(self, step: int, rate: float | None, tail: str) -> None:
        ordered = sorted(self._losses, key=lambda name: name != "total")  # stable: total first
        losses = [f"{name} {_number(self._losses[name])}" for name in ordered]
        speed = []
        if rate:
            if self.trainer.run.batch_size:
                speed.append(f"{_speed(rate * self.trainer.run.batch_size)} examples/s")
            speed.append(f"{_speed(rate)} steps/s")
            if self._waiting >= _SLOW_INPUT:
                speed.append(f"input {self._waiting:.0%}")
        head = f"step {step}/{self.trainer.run.steps}"
        self._view.show(step, functools.partial(_fitted, head, losses, speed, tail))


def _fitted(head: str, losses: list[str], speed: list[str], tail: str, room: int | None) -> str:
    """The line in at most `room` columns, if it can be.

    The first to go are the speeds, then losses from the last. The step and the time left stay.
    """
    shown, speed = min(len(losses), _LOSSES), list(speed)
    while True:
        more = len(losses) - shown
        left = [head, *losses[:shown]]
        if more and shown:
            left.append(f"(+{more} {'losses' if more > 1 else 'loss'})")
        right = [*speed, tail] if tail else speed
        line = "  |  ".join("  ".join(part) for part in (left, right) if part)
        if room is None or len(line) <= room or not (speed or shown):
            return line
        if speed:
            speed = speed[1:]
        else:
            shown -= 1


def _rate(first: tuple[float, int], last: tuple[float, int]) -> float | None:
    """Steps a second between two (time, step), if there was time and progress."""
    seconds, steps = last[0] - first[0], last[1] - first[1]
    return steps / seconds if seconds > 0 and steps > 0 else None


def _number(value: float) -> str:
    return f"{float(value):.4g}"


def _speed(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
