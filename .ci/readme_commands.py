"""Prints the commands in the README, so that CI runs the README itself and not a copy of it.

    python .ci/readme_commands.py README.md

The commands are the lines of the first shell code block that contains `pip install -e`. The block
must have exactly two such lines. A third one is refused, because users would read a line that CI
doesn't run.
"""

import re
import sys
from pathlib import Path

COUNT = 2
MARK = "pip install -e"
SHELLS = ("", "bash", "sh", "shell")

# An opening fence, its language, and everything up to the same fence again.
BLOCK = re.compile(
    r"^(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>[^\s`]*)[^\n`]*\n(?P<body>.*?)^(?P=fence)[ \t]*$",
    re.MULTILINE | re.DOTALL,
)


def readme_commands(text: str) -> list[str]:
    """Finds the two commands.

    Args:
      text: The README.

    Returns:
      The commands, in order.

    Raises:
      ValueError: There aren't exactly two; the message lists what there is.
    """
    for block in BLOCK.finditer(text.replace("\r\n", "\n")):
        if block["language"].lower() in SHELLS and MARK in block["body"]:
            break
    else:
        raise ValueError(f"no shell code block holds '{MARK}'")
    lines = [line.strip() for line in block["body"].splitlines()]
    commands = [line for line in lines if line and not line.startswith("#")]
    if len(commands) != COUNT or not all(MARK in command for command in commands):
        listing = "".join(f"\n  {command}" for command in commands)
        raise ValueError(
            f"the first shell code block with '{MARK}' must hold exactly {COUNT} commands, "
            f"each with a '{MARK}' and on a line of its own. It holds {len(commands)}:{listing}"
        )
    return commands


def main(path: str) -> None:
    """Prints the commands of the README at `path`."""
    try:
        commands = readme_commands(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"{path}: {error}")
    print("\n".join(commands))


if __name__ == "__main__":
    main(*sys.argv[1:])
