"""The directory that a run writes to, and what is written once it trains. Host code."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from tfloss.common.replacement import remove_leftovers

_deferred: dict[Path, Callable[[], object]] = {}  # by workdir


def writable(workdir: Path) -> Path:
    """Creates a workdir and tries to write in it.

    Args:
      workdir: The directory. It is created with its parents.

    Returns:
      The absolute path, since the program may change its directory.

    Raises:
      OSError: The directory can't be written to. The message names it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):  # its name, if it has one, can't be guessed
            remove_leftovers(workdir)
    except OSError as error:
        message = f"workdir {str(workdir)!r} can't be written to: {error.strerror}"
        raise type(error)(error.errno, message) from None
    return workdir.absolute()


def write_when_trained(workdir: Path, write: Callable[[], object]) -> None:
    """Defers a file of the run until a trainer has completed a step in the workdir.

    What describes a run must not be overwritten by one that fails before its first step, or that
    has no step to do.

    Args:
      workdir: The directory.
      write: A function that writes the file. It replaces the one of an earlier call.
    """
    _deferred[workdir.absolute()] = write


def write_deferred(workdir: Path | None) -> None:
    """Writes what was deferred for a workdir and the directories above it: a step is completed.

    Args:
      workdir: The directory of a trainer, or None.
    """
    for path in [] if workdir is None else [workdir, *workdir.parents]:
        if path in _deferred:
            _deferred.pop(path)()
