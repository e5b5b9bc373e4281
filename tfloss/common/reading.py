"""Reads files that may be damaged, or something else than files. Host code.

check_directory(path)     # WorkdirError: it is a file, a link into nowhere, not writable, ...
check_file(path)          # the same for a file; neither need exist
read_file(path)           # never waits for a FIFO, never reads a device
read_json(path)           # OSError or ValueError, whatever the file contains
"""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

from tfloss.errors import WorkdirError

_KINDS = (
    (stat.S_ISREG, "a file"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
)
_MAX_BYTES, _MAX_JSON_BYTES, _MAX_DEPTH = 2**30, 2**28, 100
_EFFECTIVE = os.access in os.supports_effective_ids


def read_file(path: Path, most: int = _MAX_BYTES) -> bytes:
    """Reads a regular file. It never waits, as reading a FIFO does.

    Args:
      path: The file, or a link to one.
      most: The largest size, in bytes.

    Returns:
      The content.

    Raises:
      OSError: It is missing, no regular file, too large, or can't be read.
    """
    _require_regular(path, os.stat(path).st_mode)  # opening a device may already do something
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        _require_regular(path, found.st_mode)
        if found.st_size > most:
            raise OSError(errno.EFBIG, f"it has {found.st_size:,} bytes", str(path))
        return file.read()


def read_json(path: Path, most: int = _MAX_JSON_BYTES) -> Any:
    """Reads a JSON file.

    Args:
      path: The file, or a link to one.
      most: The largest size, in bytes.

    Returns:
      The value, nested 100 levels deep at most.

    Raises:
      OSError: It is missing, no regular file, too large, or can't be read.
      ValueError: It is not JSON, or nested too deeply.
    """
    return parse_json(read_file(path, most))


def parse_json(text: bytes | str) -> Any:
    """Parses JSON that may be damaged.

    Args:
      text: The JSON. Bytes are UTF-8.

    Returns:
      The value, nested 100 levels deep at most.

    Raises:
      ValueError: It is not JSON, or nested too deeply.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level: list[Any] = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            part
            for one in level
            if isinstance(one, list | dict)
            for part in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return value
    raise ValueError("it is nested too deeply")


def check_directory(path: Path, *, write: bool = True) -> None:
    """Checks that a directory can be used, or created where there is nothing yet.

    Args:
      path: The directory, or a link to one.
      write: Whether it will be written to.

    Raises:
      WorkdirError: It can't be used. The message says why, and what to do.
    """
    mode = _mode(path, write=write)
    if mode is None:
        return
    if not stat.S_ISDIR(mode):
        raise WorkdirError(f"{path} must be a directory, but it is {_kind(mode)}. Move it away.")
    _require_access(path, os.R_OK | os.X_OK | (os.W_OK if write else 0))


def check_file(path: Path, *, write: bool = True, links: bool = True) -> None:
    """Checks that a file can be read and written, or created where there is nothing yet.

    Args:
      path: The file, or a link to one.
      write: Whether it will be written to. A file that is replaced as a whole is not.
      links: Whether it may be a link. tfloss doesn't append to a file elsewhere.

    Raises:
      WorkdirError: It can't be used. The message says why, and what to do.
    """
    mode = _mode(path, write=True)
    if mode is None:
        return
    if not links and path.is_symlink():
        raise WorkdirError(
            f"{path} is a link, and tfloss doesn't write through links. Put a file there, or move "
            "it away."
        )
    if not stat.S_ISREG(mode):
        raise WorkdirError(f"{path} must be a file, but it is {_kind(mode)}. Move it away.")
    _require_access(path, os.R_OK | (os.W_OK if write else 0))
    if (size := path.stat().st_size) > _MAX_BYTES and _has_hole(path, size):
        raise WorkdirError(
            f"{path} has {size:,} bytes, but a part of them was never written: it is damaged. Move "
            "it away."
        )


def _has_hole(path: Path, size: int) -> bool:
    """Whether a file is sparse, as nothing is that tfloss writes."""
    if not hasattr(os, "SEEK_HOLE"):
        return False
    with path.open("rb") as file:
        return os.lseek(file.fileno(), 0, os.SEEK_HOLE) < size


def _mode(path: Path, *, write: bool) -> int | None:
    """The mode of what is at a path, links followed. None if nothing is there, and can be made."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise WorkdirError(
                f"{path} is a link to {os.readlink(path)}, which doesn't exist. Is its disk "
                "mounted? If the link is not needed, remove it."
            ) from None
    except OSError as error:
        raise WorkdirError(f"{path} can't be read: {error.strerror}.") from None
    if write and path.parent != path:
        check_directory(path.parent)
    return None


def _require_access(path: Path, access: int) -> None:
    if os.access(path, access, effective_ids=_EFFECTIVE):
        return
    wanted = {os.R_OK: "read", os.W_OK: "written to", os.X_OK: "entered"}
    missing = [
        text
        for flag, text in wanted.items()
        if access & flag and not os.access(path, flag, effective_ids=_EFFECTIVE)
    ]
    raise WorkdirError(
        f"{path} can't be {' or '.join(missing)}: its permissions are "
        f"{stat.filemode(path.stat().st_mode)}, or its disk is read-only."
    )


def _require_regular(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"it is {_kind(mode)}, not a file", str(path))


def _kind(mode: int) -> str:
    return next((text for test, text in _KINDS if test(mode)), "a device")
