"""Where the progress line is shown: as one live line on a terminal, or as lines in a stream.

    display = PlainDisplay(sys.stderr)
    display.start(0, 2000)
    display.update(137, lambda width: "step 137/2000 ..."[:width])
    display.print_line("step 137  val/accuracy 0.981")
    display.stop()

A thread redraws the live line once a second, since the line says how long something takes. In a
stream, what takes long has a line after 5 seconds, and again after 10, 20, 40, ... Host code.
"""

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Protocol, TextIO

from tfloss.common import activity
from tfloss.common.logger import in_notebook
from tfloss.common.long_activities import LongActivities

_BAR_WIDTH = 16
_MIN_WIDTH_FOR_BAR = 100  # columns; a narrower terminal needs them for names and numbers

# Returns the line in at most so many columns. None: any length fits.
Text = Callable[[int | None], str]


class ProgressDisplay(Protocol):
    """What shows the progress of training."""

    def start(self, step: int, total: int | None) -> None:
        """Prepares for a run.

        Args:
          step: Step at which the run starts.
          total: Step at which it ends. None: only activities are shown.
        """
        ...

    def update(self, step: int, text: Text) -> None:
        """Shows the progress line.

        Args:
          step: The current step.
          text: Function of a width in columns that returns the line. A live display calls it again
            each time it draws the line, in a thread.
        """
        ...

    def activity(self, text: Text, seconds: Callable[[], float] | None = None) -> None:
        """Shows the line for something that takes time; in a stream only if it takes long.

        Args:
          text: As for `update`.
          seconds: Function that returns how long it has taken. None: nothing takes time any more,
            and the line is the progress line again.
        """
        ...

    def losses(self, step: int, values: Mapping[str, float]) -> None:
        """Receives the losses of a log, for a display that has a table.

        Args:
          step: The step that they belong to.
          values: Losses by name.
        """
        ...

    def headline(self, lines: Sequence[str]) -> None:
        """Shows lines that say what the run is.

        Args:
          lines: The lines, aligned by spaces.
        """
        ...

    def print_line(self, text: str) -> None:
        """Prints a line that stays.

        Args:
          text: The line, without a newline.
        """
        ...

    def stop(self) -> None:
        """Ends the display. It may be called twice."""
        ...


class PlainDisplay:
    """Prints a line for each update: in log files and pipes. Host.

    Args:
      stream: The stream to print to.
      thread: Whether a thread prints the lines of what takes long. Otherwise `poll` prints them.
    """

    def __init__(self, stream: TextIO, *, thread: bool = True):
        self._stream = stream
        self._text: Text = lambda width: ""
        self._long = LongActivities(lambda: self.print_line(self._text(None)), thread=thread)
        self.poll = self._long.poll

    def start(self, step: int, total: int | None) -> None:
        """Does nothing."""

    def update(self, step: int, text: Text) -> None:
        """Prints the progress line in full length."""
        self.print_line(text(None))

    def activity(self, text: Text, seconds: Callable[[], float] | None = None) -> None:
        """Prints a line if it takes long: a log would have a line for everything."""
        self._text = text
        self._long.changed(seconds)

    def losses(self, step: int, values: Mapping[str, float]) -> None:
        """Does nothing: the line has them."""

    def headline(self, lines: Sequence[str]) -> None:
        """Prints the lines."""
        self.print_line("\n".join(lines))

    def print_line(self, text: str) -> None:
        """Prints a line."""
        print(text, file=self._stream, flush=True)

    def stop(self) -> None:
        """Ends the thread. It prints nothing."""
        self._long.stop()


class LiveDisplay:
    """Redraws one line, with a progress bar if it fits; other output scrolls above it. Host.

    Args:
      console: A `rich.console.Console`.
      thread: Whether a thread redraws the line once a second. Otherwise it is drawn at each update.
    """

    def __init__(self, console: Any, *, thread: bool = True):
        self._console, self._thread = console, thread
        self._progress: Any = None  # a rich.progress.Progress during a run
        self._task: Any = None
        self._text: Text = lambda width: ""
        self._bar_columns = 0

    def start(self, step: int, total: int | None) -> None:
        """Prepares the line. It is drawn at the first `update`; from then on print() goes above.

        Without a total, `stop` erases the line.
        """
        if total is not None:
            self.stop()
        if self._progress is None:
            self._prepare(step, total)

    def update(self, step: int, text: Text) -> None:
        """Redraws the line in the terminal's current width."""
        self._progress.update(self._task, completed=step)
        self.activity(text)

    def activity(self, text: Text, seconds: Callable[[], float] | None = None) -> None:
        """Redraws the line for something that takes time."""
        self._text = text
        if not self._progress.live.is_started:
            self._progress.start()
        self._progress.refresh()

    def losses(self, step: int, values: Mapping[str, float]) -> None:
        """Does nothing: the line has them."""

    def headline(self, lines: Sequence[str]) -> None:
        """Prints the lines above the live one."""
        self.print_line("\n".join(lines))

    def print_line(self, text: str) -> None:
        """Prints a line above the live one."""
        self._console.print(text, markup=False, highlight=False)

    def stop(self) -> None:
        """Leaves the last state of the line on the terminal."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _prepare(self, step: int, total: int | None) -> None:
        from rich.progress import BarColumn, Progress, RenderableColumn
        from rich.table import Column

        columns: list[Any] = [RenderableColumn(_Line(self))]
        if self._console.width >= _MIN_WIDTH_FOR_BAR:
            column = BarColumn(bar_width=_BAR_WIDTH, table_column=Column(min_width=_BAR_WIDTH))
            columns.insert(0, column)
            self._bar_columns = _BAR_WIDTH + 1
        self._progress = Progress(
            *columns,
            console=self._console,
            refresh_per_second=1,
            transient=total is None,
            auto_refresh=self._thread,
            # Standard output may be a file while the line is on a terminal.
            redirect_stdout=sys.stdout.isatty(),
        )
        total = None if total is None else max(total, 1)
        self._task = self._progress.add_task("", total=total, completed=step)

    def line(self) -> str:
        """Returns the line in the terminal's current width."""
        return self._text(self._console.width - self._bar_columns)


class _Line:
    """The line as a renderable of rich, computed each time it is drawn."""

    def __init__(self, display: LiveDisplay):
        self._display = display

    def __rich__(self) -> Any:
        from rich.text import Text

        return Text(self._display.line(), no_wrap=True, overflow="ellipsis")


@contextlib.contextmanager
def activity_line(stream: TextIO) -> Generator[None]:
    """Shows what takes time inside of the `with`, while nobody else shows it. Host.

    Args:
      stream: The terminal. Another stream has lines of what takes long, but not the red boxes below
        the cell of a notebook.

    Yields:
      None.
    """
    if in_notebook():
        yield
        return
    timer = activity.Timer(time.monotonic)
    with contextlib.ExitStack() as stack:
        if stream.isatty():
            from rich.console import Console

            display: ProgressDisplay = LiveDisplay(Console(file=stream), thread=False)
        else:
            display = PlainDisplay(stack.enter_context(_not_held_back(stream)))

        def changed() -> None:
            if (found := timer.current()) is None:
                display.stop()
            else:
                display.start(0, None)
                display.activity(activity_text(*found), found[1])

        stack.callback(display.stop)
        stack.enter_context(activity.watched(changed))
        yield


def _not_held_back(stream: TextIO) -> contextlib.AbstractContextManager[TextIO]:
    """Opens the file of a stream once more: `tfloss.quiet` holds standard error back meanwhile."""
    try:
        return open(os.dup(stream.fileno()), "w", encoding=stream.encoding, errors="replace")
    except (OSError, ValueError):  # no file, or a closed one
        return contextlib.nullcontext(stream)


def activity_text(current: activity.Activity, seconds: Callable[[], float]) -> Text:
    """Returns the line for something that takes time: what it is, and how long from 1 s on.

    Args:
      current: The activity.
      seconds: Function that returns how long it has taken.
    """
    return lambda width: (
        f"{current.text} {duration(took)}" if (took := seconds()) >= 1 else current.text
    )


def duration(seconds: float) -> str:
    """Returns a time as text, such as `1:02:03` or `0:07`.

    Args:
      seconds: The time.
    """
    minutes, seconds = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
