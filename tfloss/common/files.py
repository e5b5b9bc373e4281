"""Files that are opened, written and locked without following a link. Host code.

with locked_file(path): ...              # one process at a time
handle = open_regular(path, os.O_RDWR)   # no link, no FIFO, no device
write_files(folder, {"a/b.txt": b""})    # names that stay inside the folder
sync(path)                               # the content is on the disk, not only in a cache

`tfloss.common.replacement` replaces files and directories as a whole.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

try:
    import fcntl
except ImportError:  # Windows has no flock
    fcntl = None


def open_regular(path: Path, flags: int) -> int:
    """Opens a file that tfloss writes to, or creates it. It never waits.

    A workdir can come from somebody else. A link in it must not lead to a file elsewhere.

    Args:
      path: The file. The directories above it may be links.
      flags: Flags of `os.open`, such as `os.O_RDWR`.

    Returns:
      The descriptor.

    Raises:
      OSError: The path is a link, a FIFO, a device or a directory, or can't be opened.
    """
    try:
        handle = os.open(path, flags | os.O_CREAT | _SAFELY, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP and path.is_symlink():
            raise OSError(errno.ELOOP, _LINK, str(path)) from None
        if error.errno == errno.ENXIO:  # a FIFO or a socket
            raise OSError(errno.EINVAL, _IRREGULAR, str(path)) from None
        raise
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return handle
    os.close(handle)
    raise OSError(errno.EINVAL, _IRREGULAR, str(path))


# Windows has none of these flags.
_SAFELY = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"))
_LINK = "it is a link, and tfloss doesn't write through links"
_IRREGULAR = "it is not a regular file"


def escaping_name(names: Iterable[str]) -> str | None:
    """Returns the first name that is no path of a file inside a folder, or None.

    Args:
      names: Relative paths, such as "a" and "a/b.txt", which somebody else may have chosen.
    """
    return next((name for name in names if not _stays_inside(name)), None)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes files into a folder, and never outside of it.

    Args:
      folder: An existing folder without links.
      files: `{relative path: content}`. None of the files may exist.

    Raises:
      ValueError: A path is absolute, or leads out of the folder. Nothing was written.
      OSError: A file exists already or can't be written.
    """
    if (bad := escaping_name(files)) is not None:
        raise ValueError(f"{bad!r} is not the path of a file inside a folder; nothing was written.")
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(content)


def sync(*paths: Path) -> None:
    """Flushes files, or directories' lists of names, to the disk.

    Args:
      *paths: Files or directories.

    Raises:
      OSError: The operating system can't flush a file, or is out of space.
    """
    for path in paths:
        directory = path.is_dir()
        if directory and os.name == "nt":  # Windows can't open one
            continue
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if not directory or error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise  # else some network file systems, which can't flush a directory
        finally:
            os.close(handle)


def has_locks() -> bool:
    """Returns whether the operating system has the locks of `lock`. Windows has none."""
    return fcntl is not None


def lock(handle: int, *, wait: bool) -> None:
    """Locks an open file for this process; the kernel unlocks it when it is closed.

    A process that dies, however it dies, loses its locks. On Windows this does nothing.

    Args:
      handle: The descriptor of an open file.
      wait: Whether to wait for another holder.

    Raises:
      BlockingIOError: Another open file holds the lock, and `wait` is false.
      OSError: The file system has no locks.
    """
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


@contextlib.contextmanager
def locked_file(path: Path) -> Iterator[None]:
    """Inside the `with` this process alone holds the lock of `path`; waits for other holders.

    Args:
      path: The lock file. It is created, and stays.

    Raises:
      OSError: The path is not a regular file, or can't be opened or locked.
    """
    handle = open_regular(path, os.O_RDWR)
    try:
        lock(handle, wait=True)
        yield
    finally:
        os.close(handle)


def _stays_inside(name: str) -> bool:
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    absolute = posix.is_absolute() or windows.drive or windows.root
    parts = {*posix.parts, *windows.parts}
    return bool(parts) and not absolute and ".." not in parts and "\0" not in name
