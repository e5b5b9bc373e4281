"""The types of flags that absl lacks: `--profile=START:STOP`, `--jit` and `--follow`. Host code."""

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


class _WordParser(flags.ArgumentParser[bool | str]):
    """Parses a boolean or one of a few words.

    Args:
      words: The words.
    """

    def __init__(self, *words: str):
        super().__init__()
        self._words = words

    def parse(self, argument: Any) -> bool | str:
        """Parses an argument.

        Args:
          argument: The text of the command line, or a boolean.

        Returns:
          A word or a boolean.

        Raises:
          ValueError: The argument is none of them.
        """
        if argument in self._words:
            return argument
        try:
            return flags.BooleanParser().parse(argument)
        except ValueError:
            words = ", ".join((*self._words, "true"))
            raise ValueError(f"expected {words} or false") from None

    def flag_type(self) -> str:
        """Names the type for `--help`."""
        *first, last = "bool", *self._words
        return f"{', '.join(first)} or {last}"


class _WordFlag(flags.Flag[bool | str]):
    """A flag `--name` or `--noname`, like a boolean one, that also takes `--name=word`."""

    def serialize(self) -> str:
        """Returns the argument that gives the flag its value, such as `--jit=loop`."""
        return f"--{self.name}={self.value}" if isinstance(self.value, str) else super().serialize()


class JitFlag(_WordFlag):
    """A flag that takes the values of `tfloss.Trainer(jit=...)`.

    Args:
      name: The name of the flag.
      help: The text for `--help`.
    """

    def __init__(self, name: str, help: str):
        super().__init__(_WordParser("loop", "auto"), None, name, None, help, boolean=True)


class FollowFlag(_WordFlag):
    """A flag that takes `--follow` and `--follow=newest`, and is false by default.

    Args:
      name: The name of the flag.
      help: The text for `--help`.
    """

    def __init__(self, name: str, help: str):
        super().__init__(_WordParser("newest"), None, name, False, help, boolean=True)
