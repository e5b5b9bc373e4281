"""Shows the progress of training in the cell of a notebook: a bar, a line and a table. Host code.

The cell has one output, which is replaced. Standard error would be red boxes there.
"""

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tfloss.common.progress_display import Text

_ROWS = 10  # of the table, and lines of results; earlier ones are left out
_LINE = '<div style="white-space: pre-wrap">{}</div>'  # keeps the two spaces between names
# Jupyter shows <pre> in a proportional font, in which columns don't stand below each other.
_COLUMNS = '<pre style="font-family: monospace">{}</pre>'
_BAR = '<progress value="{}" max="{}" style="width: 100%"></progress>'


class NotebookDisplay:
    """Replaces one output of the cell, see `ProgressDisplay`. Host."""

    def __init__(self) -> None:
        self._output: Any = None  # an IPython.display.DisplayHandle
        self._step, self._total, self._ended = 0, 0, False
        self._line = ""
        self._rows: dict[int, Mapping[str, float]] = {}
        self._results: list[str] = []
        self._headline: Sequence[str] = ()

    def start(self, step: int, total: int | None) -> None:
        """Prepares for a run. Its output appears at the first `update`."""
        if total is not None:
            self._rows, self._results, self._headline = {}, [], ()
            self._output, self._ended = (None if self._ended else self._output), False
        if not self._ended:
            self._step, self._total = step, total or 0

    def update(self, step: int, text: Text) -> None:
        """Replaces the output."""
        self._step = step
        self.activity(text)

    def activity(self, text: Text, seconds: Callable[[], float] | None = None) -> None:
        """Replaces the output, with the line for something that takes time."""
        if not self._ended:  # else the last line stays
            self._line = text(None)
            self._draw()

    def losses(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a row to the table. It is drawn at the next `update`."""
        self._rows[step] = values

    def headline(self, lines: Sequence[str]) -> None:
        """Shows the lines at the top."""
        self._headline = lines
        self._draw()

    def print_line(self, text: str) -> None:
        """Adds a line below the table."""
        self._results.append(text)
        self._draw()

    def stop(self) -> None:
        """Leaves the output as it is, and begins another one in the next run."""
        self._ended = True

    def _draw(self) -> None:
        from IPython.display import HTML, display  # pyright: ignore

        shown: Any = HTML(self._html())
        if self._output is None:
            self._output = display(shown, display_id=True)
        else:
            self._output.update(shown)

    def _html(self) -> str:
        parts = [line_html(self._line)]
        if self._total:
            parts.insert(0, _BAR.format(self._step, self._total))
        if self._headline:
            parts.insert(0, _COLUMNS.format(html.escape("\n".join(self._headline))))
        rows = list(self._rows.items())[-_ROWS:]
        if rows:
            names = list(dict.fromkeys(name for _, values in rows for name in values))
            parts.append(f"<table>{_row('th', ['step', *names])}")
            for step, values in rows:
                cells = [f"{values[name]:.4g}" if name in values else "" for name in names]
                parts.append(_row("td", [str(step), *cells]))
            parts.append("</table>")
        parts += [line_html(line) for line in self._results[-_ROWS:]]
        return "".join(parts)


def line_html(text: str) -> str:
    """Returns a line of text as HTML.

    Args:
      text: The line.
    """
    return _LINE.format(html.escape(text))


def _row(tag: str, cells: list[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
