"""Where the progress line is shown: as one live line on a terminal, or as lines in a stream.

    display = PlainDisplay(sys.stderr)
    display.start(0, 2000)
    display.update(137, lambda width: "step 137/2000 ..."[:width])
    display.print_line("step 137  val/accuracy 0.981")
    display.stop()

Nothing is drawn between two calls of `update`, and there is no thread. Host code.
"""

import sys
from collections.abc import Callable
from typing import Any, Protocol, TextIO

_BAR_WIDTH = 16
_MIN_WIDTH_FOR_BAR = 100  # columns; a narrower terminal needs them for names and numbers


class ProgressDisplay(Protocol):
    """What shows the progress of training."""

    def start(self, step: int, total: int) -> None:
        """Prepares for a run.

        Args:
          step: Step at which the run starts.
          total: Step at which it ends.
        """
        ...

    def update(self, step: int, text: Callable[[int | None], str]) -> None:
        """Shows the progress line.

        Args:
          step: The current step.
          text: Function of a width in columns that returns the line. The width is None if any
            length fits.
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
    """Prints a line for each update: in log files, pipes and notebooks. Host.

    Args:
      stream: The stream to print to.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def start(self, step: int, total: int) -> None:
        """Does nothing."""

    def update(self, step: int, text: Callable[[int | None], str]) -> None:
        """Prints the progress line in full length."""
        self.print_line(text(None))

    def print_line(self, text: str) -> None:
        """Prints a line."""
        print(text, file=self._stream, flush=True)

    def stop(self) -> None:
        """Does nothing."""


class LiveDisplay:
    """Redraws one line, with a progress bar if it fits; other output scrolls above it. Host.

    Args:
      console: A `rich.console.Console`.
    """

    def __init__(self, console: Any):
        self._console = console
        self._progress: Any = None  # a rich.progress.Progress during a run
        self._task: Any = None
        self._bar_columns = 0

    def start(self, step: int, total: int) -> None:
        """Prepares the line. It is drawn at the first `update`; from then on print() goes above."""
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        columns: list[Any] = [TextColumn("{task.fields[line]}", markup=False)]
        self._bar_columns = 0
        if self._console.width >= _MIN_WIDTH_FOR_BAR:
            bar = BarColumn(bar_width=_BAR_WIDTH, table_column=Column(min_width=_BAR_WIDTH))
            columns.insert(0, bar)
            self._bar_columns = _BAR_WIDTH + 1
        self._progress = Progress(
            *columns,
            console=self._console,
            auto_refresh=False,  # no thread
            # Standard output may be a file while the line is on a terminal.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task = self._progress.add_task("", total=max(total, 1), completed=step, line="")

    def update(self, step: int, text: Callable[[int | None], str]) -> None:
        """Redraws the line in the terminal's current width."""
        if not self._progress.live.is_started:
            self._progress.start()
        line = text(self._console.width - self._bar_columns)
        self._progress.update(self._task, completed=step, line=line)
        self._progress.refresh()

    def print_line(self, text: str) -> None:
        """Prints a line above the live one."""
        self._console.print(text, markup=False, highlight=False)

    def stop(self) -> None:
        """Leaves the last state of the line on the terminal."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
