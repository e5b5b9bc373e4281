"""Starts a training script for a command of `tfloss`. Host code, without TensorFlow."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

NOT_STARTED = 2  # the exit code of a command that could not be started


def run_script(
    command: Sequence[str], variables: Mapping[str, str], directory: str | Path | None = None
) -> tuple[int, str]:
    """Runs a command, and waits for its end. Its output goes where that of this process goes.

    Args:
      command: The command that trains.
      variables: Environment variables to add; see `tfloss.common.command_variables`.
      directory: The directory to run it in. None: the current one.

    Returns:
      Its exit code; how it ended, in words that go on from "the command ".
    """
    try:
        done = subprocess.run(command, cwd=directory, env={**os.environ, **variables})
    except OSError as error:
        return NOT_STARTED, f"could not be started ({error})"
    return done.returncode, f"ended with exit code {done.returncode}"


def print_error(name: str, message: str) -> None:
    """Prints an error of a command of `tfloss`.

    Args:
      name: The name of the command.
      message: The message.
    """
    print(f"tfloss {name}: {message}", file=sys.stderr)
