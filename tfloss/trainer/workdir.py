"""The directory that a run writes to, and what is written once it trains. Host code."""

import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfloss.common.command_variables import RANGE_VARIABLE
from tfloss.common.reading import check_directory, check_file, read_json
from tfloss.common.replacement import remove_leftovers
from tfloss.errors import WorkdirError

CONFIG_FILE = "config.json"
_DIRECTORIES = ("checkpoints",)
_REPLACED_FILES = (CONFIG_FILE, "engine.json")
_deferred: dict[Path, Callable[[], object]] = {}  # by workdir
_warned: set[Path] = set()  # workdirs in which it can't be written


def opened(workdir: str | Path | None, *, writes: bool) -> Path | None:
    """Returns the absolute path of a workdir, since the program may change its directory.

    Args:
      workdir: The directory, or None.
      writes: Whether anything will be written to it. Then it is created, and must be writable.

    Raises:
      OSError: The directory can't be written to. The message names it.
    """
    if workdir is None or RANGE_VARIABLE in os.environ:  # `tfloss lr-range` leaves runs alone
        return None
    return writable(Path(workdir)) if writes else Path(workdir).absolute()


def writable(workdir: Path) -> Path:
    """Creates a workdir and tries to write in it.

    Args:
      workdir: The directory. It is created with its parents.

    Returns:
      The absolute path, since the program may change its directory.

    Raises:
      WorkdirError: The directory can't be written to. The message names it.
    """
    try:
        check_directory(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):  # its name, if it has one, can't be guessed
            remove_leftovers(workdir)
    except OSError as error:
        reason = str(error) if isinstance(error, WorkdirError) else error.strerror
        raise WorkdirError(f"workdir {str(workdir)!r} can't be written to: {reason}") from None
    return workdir.absolute()


def check_entries(workdir: Path) -> None:
    """Checks what a run finds in its workdir, before it trains. Hooks check their own files.

    Args:
      workdir: The directory, which exists.

    Raises:
      WorkdirError: The checkpoints can't be read or written, or a file that a run reads or replaces
        is something else. Training would start from the beginning, or fail at its first save.
    """
    for name in _DIRECTORIES:
        check_directory(workdir / name)
    for name in _REPLACED_FILES:
        check_file(workdir / name, write=False)
    read_config(workdir)


def read_config(workdir: Path) -> dict[str, Any] | None:
    """Reads the config that a run saved.

    Args:
      workdir: The directory of the run.

    Returns:
      The config as nested JSON values, or None if there is none.

    Raises:
      WorkdirError: The file can't be read, or is no JSON object.
    """
    path = workdir / CONFIG_FILE
    try:
        found = read_json(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise WorkdirError(f"{path} can't be read: {error.strerror}.") from None
    except ValueError as error:
        raise WorkdirError(_no_config(path, str(error))) from None
    if not isinstance(found, dict):
        raise WorkdirError(_no_config(path, "it is no JSON object"))
    return found


def _no_config(path: Path, reason: str) -> str:
    return (
        f"{path} is not a config that tfloss saved ({reason}). Every checkpoint holds a copy. "
        "Repair it, or move it away."
    )


def write_when_trained(workdir: Path, write: Callable[[], object]) -> None:
    """Defers a file of the run until a trainer has completed a step in the workdir.

    What describes a run must not be overwritten by one that fails before its first step, or that
    has no step to do.

    Args:
      workdir: The directory.
      write: A function that writes the file. It replaces the one of an earlier call.
    """
    _deferred[workdir.absolute()] = write


def write_deferred(workdir: Path | None, *, survive: bool = False) -> None:
    """Writes what was deferred for a workdir and the directories above it: a step is completed.

    Args:
      workdir: The directory of a trainer, or None.
      survive: Whether to warn of a file that can't be written. It stays deferred.

    Raises:
      OSError: A file can't be written, and `survive` is false.
    """
    for path in [] if workdir is None else [workdir, *workdir.parents]:
        if path not in _deferred:
            continue
        write = _deferred[path]
        try:
            write()
        except OSError as error:
            if not survive:
                raise
            if path not in _warned:
                _warned.add(path)
                warnings.warn(
                    f"The config of the run can't be written in {path}: {error} Training "
                    "continues. It is tried again with each checkpoint.",
                    stacklevel=2,
                )
        else:
            _deferred.pop(path)
            _warned.discard(path)
