"""Shows the progress of training: a live line on a terminal, plain lines in a file.

    Progress()
    # step 137/2000  total 0.4321  cross_entropy 0.4  |  1,234 examples/s  38.6 steps/s  ETA 0:48

The first lines say what the run is: parameters, losses, optimizer, batch, workdir. A second call of
`train` shows them again only if they have changed.

If training waits for input 5 % of the time or more, the line shows it: `input 12%`. The last line
also has the time of hooks and checkpoints. Evaluation results have a line of their own:
`step 137  val/accuracy 0.981`.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, TextIO

from tfloss.common import activity
from tfloss.common.logger import in_notebook
from tfloss.common.notebook_display import NotebookDisplay
from tfloss.common.progress_display import (
    LiveDisplay,
    PlainDisplay,
    ProgressDisplay,
    activity_text,
    duration,
)
from tfloss.hooks.base import Hook
from tfloss.hooks.evaluate import Evaluate
from tfloss.hooks.every import Every
from tfloss.hooks.step_speed import StepSpeed
from tfloss.hooks.write_errors import WriteErrors
from tfloss.inspect.report import aligned
from tfloss.summary import Summary

_RATE_WINDOW = 5.0  # seconds over which the speed is averaged, at least
_STALL = 5.0  # seconds without a step after which the remaining time is not known
_SLOW_INPUT = 0.05  # fraction of the time from which on waiting for input is shown
_MAX_LOSSES = 8  # shown by name; TensorBoard has the others


class Progress(Hook, own=True):
    """Shows step, losses, speed and remaining time, and evaluation results. Host.

    The live line fits the terminal: a narrow one has no bar, fewer losses and no speed. It uses the
    step count of the host and logged values only, never the device. The losses are the last ones
    logged, so with `log_every=100` they change every 100 steps. The speed is that of the steps of
    the last seconds. The remaining time includes evaluations and checkpoints, as often as so far.

    While something else takes time, such as building, compiling, reading past or evaluating, the
    live line says so in place of the remaining time. It does the same if no step ends. In a log
    file or a pipe, what takes long has a line of its own after 5, 10, 20, 40, ... seconds.

    The cell of a notebook has one output that is replaced: a bar, the line, and a table of losses.

    Args:
      seconds: Shortest time between two plain lines. A live line is redrawn every 0.2 seconds.
      stream: Stream to print to. None: standard error, or the cell of a notebook.
      console: A `rich.console.Console` to draw a live line on, whatever the stream is.
      clock: Function that returns seconds. Tests can replace it.
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
        self._display: ProgressDisplay = LiveDisplay(console) if live else PlainDisplay(out)
        if stream is console is None and in_notebook():
            live, self._display = True, NotebookDisplay()
        self.every = Every(seconds=0.2 if live else seconds, clock=clock)
        self._clock, self._timer = clock, activity.Timer(clock)
        self._errors = WriteErrors(self, "The progress line", "Lines are left out.")
        self._speed = StepSpeed(clock, _RATE_WINDOW)
        self._free = 0.0  # when the last activity ended
        self._running = False  # between `before_train` and `after_train`
        self._headline: list[str] = []
        self._line: Callable[[int | None], str] = lambda width: ""

    @contextlib.contextmanager
    def shown(self) -> Generator[None]:
        """Shows activities inside of the `with`: a call of `train`, from its beginning.

        Yields:
          None.
        """
        self._speed.restart(0)
        with activity.watched(self._activity_changed):
            try:
                yield
            finally:
                self._display.stop()

    def before_train(self) -> None:
        """Starts the clock and the display."""
        run = self.trainer.run
        self._losses: dict[str, float] = {}
        self._input_fraction = 0.0
        self._start = (self._clock(), run.start)
        self._speed.restart(run.start)
        self._running, self._line = True, lambda width: self._head()
        names = {hook.name for hook in self.trainer.hooks if isinstance(hook, Evaluate)}
        self._result_prefixes = tuple(f"{name}/" for name in sorted(names | {"val"}))
        self._display.start(run.start, run.steps)

    def headline(self, rows: Sequence[Sequence[str]]) -> None:
        """Shows what the run is, if that was not shown yet. The trainer calls it at its first step.

        Args:
          rows: The names and values to show.
        """
        lines = aligned(rows)
        if lines != self._headline:
            self._headline = lines
            self._errors.survive(lambda: self._display.headline(lines))

    def on_log(self, step: int, scalars: Mapping[str, float], summaries: Sequence[Summary]) -> None:
        """Keeps losses for the next line, and prints evaluation results."""
        if losses := _training_losses(scalars):
            self._losses = losses
            self._display.losses(step, losses)
        self._input_fraction = scalars.get("input/wait_fraction", self._input_fraction)
        results = [
            f"{name} {_number(value)}"
            for name, value in scalars.items()
            if name.startswith(self._result_prefixes)
        ]
        if results:
            line = "  ".join([f"step {step}", *results])
            self._errors.survive(lambda: self._display.print_line(line))

    def after_step(self, step: int) -> None:
        """Shows the progress line with the estimated time that remains."""
        self._speed.completed(step)
        self._show(step, self._speed.steps_per_second, self._remaining(step))

    def after_train(self) -> None:
        """Shows the last line, with the time that the run took and the error that ended it."""
        step, now = self.trainer.step, self._clock()
        self._running = False
        if step > self._start[1]:
            took = f"took {duration(now - self._start[0])}{self._time_fractions()}"
            if self.trainer.error is not None:
                took += f"  ended by {type(self.trainer.error).__name__}"
            seconds = now - self._start[0]
            rate = (step - self._start[1]) / seconds if seconds > 0 else None
            self._show(step, rate, lambda: took)
        self._display.stop()

    def _activity_changed(self) -> None:
        """Shows what takes time now, or the progress line again."""
        found = self._timer.current()
        self._speed.activity(found and found[0])
        head = self._line if self._running else lambda width: ""
        if found is None:
            self._free = self._clock()
            self._errors.survive(lambda: self._show_activity(head, None))
            return
        shown, seconds = activity_text(*found), found[1]

        def text(width: int | None) -> str:
            if not self._running:
                return shown(width)
            return _fitted_line(self._head(), self._shown_losses(), [], shown(width), width)

        self._errors.survive(lambda: self._show_activity(text, seconds))

    def _show_activity(
        self, text: Callable[[int | None], str], seconds: Callable[[], float] | None
    ) -> None:
        if not self._running:
            self._display.start(0, None)
        self._display.activity(text, seconds)

    def _remaining(self, step: int) -> Callable[[], str]:
        """Returns a function that returns the time that remains when it is called, as text."""
        now, rate = self._clock(), self._speed.steps_per_second
        if not rate:
            return lambda: ""
        seconds = (self.trainer.run.steps - step) / rate * self._speed.overhead
        usual = self._speed.seconds_between_calls

        def text() -> str:
            idle = self._clock() - max(now, self._free)
            if idle > max(_STALL, 3 * usual):
                return f"no step for {duration(idle)}"
            return f"ETA {duration(max(seconds - idle, 0.0))}"

        return text

    def _time_fractions(self) -> str:
        """Returns the fractions of the run's time that were not spent in steps, as text."""
        fractions = self.trainer.stopwatch.fractions()
        kinds = ("input", "hooks", "checkpoint")
        shown = [f"{kind} {fractions[kind]:.0%}" for kind in kinds if fractions[kind] >= 0.01]
        return f" ({', '.join(shown)})" if shown else ""

    def _show(self, step: int, rate: float | None, tail: Callable[[], str]) -> None:
        losses = self._shown_losses()
        speed: list[str] = []
        if rate:
            if self.trainer.run.batch_size:
                speed.append(f"{_speed(rate * self.trainer.run.batch_size)} examples/s")
            speed.append(f"{_speed(rate)} steps/s")
            if self._input_fraction >= _SLOW_INPUT:
                speed.append(f"input {self._input_fraction:.0%}")
        self._line = lambda width: _fitted_line(self._head(), losses, speed, tail(), width)
        self._errors.survive(lambda: self._display.update(step, self._line))

    def _head(self) -> str:
        return f"step {self.trainer.step}/{self.trainer.run.steps}"

    def _shown_losses(self) -> list[str]:
        ordered = sorted(self._losses, key=lambda name: name != "total")  # stable: total first
        return [f"{name} {_number(self._losses[name])}" for name in ordered]


@contextlib.contextmanager
def shown(hooks: Iterable[Hook]) -> Generator[None]:
    """Shows what a call of `train` does inside of the `with`, by its hook `Progress`, if any.

    Args:
      hooks: The hooks of the call.

    Yields:
      None.
    """
    with contextlib.ExitStack() as stack:
        for hook in hooks:
            if isinstance(hook, Progress) and hook.trainer.agreement.chief:
                stack.enter_context(hook.shown())
        yield


def _training_losses(scalars: Mapping[str, float]) -> dict[str, float]:
    """Returns the losses of the training step in a log, without their group `losses/`."""
    group = "losses/"
    return {
        name.removeprefix(group): value for name, value in scalars.items() if name.startswith(group)
    }


def _fitted_line(
    head: str, losses: list[str], speed: list[str], tail: str, width: int | None
) -> str:
    """Returns the line in at most `width` columns, if it fits.

    It omits the speeds first, then losses from the last one on. Step and remaining time stay.
    """
    shown, speed = min(len(losses), _MAX_LOSSES), list(speed)
    while True:
        more = len(losses) - shown
        left = [head, *losses[:shown]]
        if more and shown:
            left.append(f"(+{more} {'losses' if more > 1 else 'loss'})")
        right = [*speed, tail] if tail else speed
        line = "  |  ".join("  ".join(part) for part in (left, right) if part)
        if width is None or len(line) <= width or not (speed or shown):
            return line
        if speed:
            speed = speed[1:]
        else:
            shown -= 1


def _number(value: float) -> str:
    return f"{float(value):.4g}"


def _speed(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
