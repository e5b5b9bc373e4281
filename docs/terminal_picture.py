"""Records a command in a terminal, for the pictures of the docs.

    record(["python", "train.py"], {"step 7../": Path("training.svg"), "$": Path("end.svg")})

The command runs in a pseudo-terminal, and pyte interprets what it prints, as a terminal would. A
picture is an SVG of the screen. This needs the `pictures` extra.
"""

import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import termios
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyte
from rich.console import Console
from rich.text import Text

_COLUMNS, _ROWS = 100, 40
_COLORS = {"default": "", "brown": "yellow", "brightblack": "bright_black"}  # of pyte, in rich
END = "end"  # the picture of the screen after the command


def record(command: list[str], pictures: Mapping[str, Path], cwd: Path) -> None:
    """Runs a command in a terminal, and writes pictures of its screen.

    Args:
      command: The command.
      pictures: `{pattern of the screen's text at which to take it: file}`, or `END`.
      cwd: Directory in which the command runs.

    Raises:
      SystemExit: The command fails, or a pattern never was on the screen.
    """
    screen = pyte.Screen(_COLUMNS, _ROWS)
    stream = pyte.ByteStream(screen)
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    screen.draw(f"$ {shlex.join(command)}")
    stream.feed(b"\r\n")
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, cwd=cwd,
        env=environment | {"TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(slave)
    missing = dict(pictures)
    end = missing.pop(END, None)
    while True:
        try:
            data = os.read(master, 4096)
        except OSError:  # the command has ended
            break
        stream.feed(data)
        for pattern in [one for one in missing if re.search(one, "\n".join(screen.display))]:
            draw(screen, missing.pop(pattern), cwd)
    if process.wait() or missing:
        print("\n".join(screen.display))
        raise SystemExit(f"{shlex.join(command)} failed, or never showed {list(missing)}.")
    if end is not None:
        draw(screen, end, cwd)


def draw(screen: Any, path: Path, cwd: Path) -> None:
    """Writes a picture of a terminal's screen, without empty lines at the end.

    Args:
      screen: The screen.
      path: The file.
      cwd: Directory that paths on the screen are shown relative to.
    """
    lines = [_line(screen, row) for row in range(screen.lines)]
    lines = [Text("").join(line.split(f"{cwd}/")) for line in lines]
    while lines and not lines[-1].plain:
        lines.pop()
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=screen.columns, file=nowhere)
        for line in [*lines, ""]:
            console.print(line)
        text = console.export_svg(title="")
    text = re.sub("@font-face {.*?}", "", text, flags=re.S)  # fonts of another server
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(f"{path}: {path.stat().st_size // 1000} kB")


def _line(screen: Any, row: int) -> Text:
    line = Text(no_wrap=True)
    for column in range(screen.columns):
        char = screen.buffer[row][column]
        color = _COLORS.get(char.fg, char.fg)
        color = f"#{color}" if re.fullmatch("[0-9a-f]{6}", color) else color
        line.append(char.data, f"{'bold ' if char.bold else ''}{color}".strip() or None)
    line.rstrip()
    return line
