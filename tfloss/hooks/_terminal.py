"""The two faces of the progress line: one that is redrawn, and lines that follow each other.

    view = PlainLines(sys.stderr)
    view.start(0, 2000); view.show(137, lambda room: "step 137/2000 ..."[:room])
    view.say("..."); view.stop()

Nothing is drawn between two calls of `show`; there is no thread.
"""

import sys
from collections.abc import Callable
from typing import Any, TextIO

_BAR = 16
_ROOM_FOR_BAR = 100  # columns; on a narrower terminal names and numbers need them more


class PlainLines:
    """A line for each `show` and `say`: log files, pipes, notebooks. Host."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def start(self, step: int, total: int) -> None:
        """Nothing to set up."""

    def show(self, step: int, text: Callable[[int | None], str]) -> None:
        """The state of training at `step`: `text(room)`, None for any length."""
        self.say(text(None))

    def say(self, text: str) -> None:
        """A line that stays."""
        print(text, file=self._stream, flush=True)

    def stop(self) -> None:
        """Nothing to take down."""


class TerminalLine:
    """One live line with a bar; other output scrolls above it. Host; drawn only by `show`."""

    def __init__(self, console: Any):
        self._console = console
        self._bar: Any = None

    def start(self, step: int, total: int) -> None:
        """Draws nothing yet; from the first `show` on, print() goes above the line."""
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        columns: list[Any] = [TextColumn("{task.fields[line]}", markup=False)]
        self._taken = 0
        if self._console.width >= _ROOM_FOR_BAR:
            columns.insert(0, BarColumn(bar_width=_BAR, table_column=Column(min_width=_BAR)))
            self._taken = _BAR + 1
        self._bar = Progress(
            *columns,
            console=self._console,
            auto_refresh=False,  # no thread of its own
            # Standard output may be a file while the line is on a terminal.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task = self._bar.add_task("", total=max(total, 1), completed=step, line="")

    def show(self, step: int, text: Callable[[int | None], str]) -> None:
        """Redraws the line as `text(room)`, with the columns that the terminal has by now."""
        if not self._bar.live.is_started:
            self._bar.start()
        line = text(self._console.width - self._taken)
        self._bar.update(self._task, completed=step, line=line)
        self._bar.refresh()

    def say(self, text: str) -> None:
        """A line that stays, above the live one."""
        self._console.print(text, markup=False, highlight=False)

    def stop(self) -> None:
        """Leaves the last state of the line standing. May be called twice."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
