"""The types of flags that absl lacks: `--profile=START:STOP`, and `--jit`. Host code."""

import re
from typing import Any

from absl import flags


class StepRangeParser(flags.ArgumentParser[tuple[int, int]]):
    """Parses START:STOP, two steps with START before STOP."""

    syntactic_help = "START:STOP"

    def parse(self, argument: Any) -> tuple[int, int]:
        """Parses an argument.

        Args:
          argument: The text of the command line.

        Returns:
          The two steps.

        Raises:
          ValueError: The text has another form, or START is not lower than STOP.
        """
        match = re.fullmatch(r"(\d+):(\d+)", argument)
        if not match or not int(match[1]) < int(match[2]):
            raise ValueError("expected two steps START:STOP with START < STOP, such as 100:110")
        return int(match[1]), int(match[2])

    def flag_type(self) -> str:
        """Names the type for `--help`."""
        return "steps"


class _JitParser(flags.ArgumentParser[bool | str]):
    """Parses the values of `tfloss.Trainer(jit=...)`."""

    def parse(self, argument: Any) -> bool | str:
        """Parses an argument.

        Args:
          argument: The text of the command line, or a boolean.

        Returns:
          "loop", "auto" or a boolean.

        Raises:
          ValueError: The argument is none of them.
        """
        if argument in ("loop", "auto"):
            return argument
        try:
            return flags.BooleanParser().parse(argument)
        except ValueError:
            raise ValueError("expected loop, auto, true or false") from None

    def flag_type(self) -> str:
        """Names the type for `--help`."""
        return "bool, loop or auto"


class JitFlag(flags.Flag[bool | str]):
    """A flag `--jit` or `--nojit`, like a boolean one, that also takes `--jit=loop` and `auto`."""

    def __init__(self, name: str, help: str):
        """Makes the flag.

        Args:
          name: The name of the flag.
          help: The text for `--help`.
        """
        super().__init__(_JitParser(), None, name, None, help, boolean=True)

    def serialize(self) -> str:
        """Returns the argument that gives the flag its value, such as `--jit=loop`."""
        return f"--{self.name}={self.value}" if isinstance(self.value, str) else super().serialize()
