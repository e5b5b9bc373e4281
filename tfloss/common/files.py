"""Atomic replacement of files and directories, and locks. Host code.

A process that is killed leaves nothing half-written.

replace_file(path, b"...")           # readers see the old content or the new one
replace_directory(new, path, old)    # the same, in two renames
with locked_file(path): ...          # one process at a time
sync(path)                           # the content is on the disk, not only in a cache
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no flock
    fcntl = None


def replace_file(path: Path, content: bytes | str) -> None:
    """Writes a file beside its target, then renames it: the target is the old or the new one.

    The content is on the disk before the rename. The temporary file has a name that nobody can
    predict, so that it cannot be a link that somebody put there.

    Args:
      path: The file to replace. It may be missing; its directory must exist.
      content: The new content. Text is encoded as UTF-8.

    Raises:
      OSError: The file can't be written. The old content is still there.
    """
    data = content.encode() if isinstance(content, str) else content
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def replace_directory(new: Path, target: Path, aside: Path) -> None:
    """Renames a complete directory to its final path, after renaming what is there now.

    No single call replaces a directory. A process that is killed between the two renames leaves no
    `target`, and the old directory as `aside`.

    Args:
      new: The directory with the new content, on the same file system.
      target: The final path. It may be missing.
      aside: The path for the old directory, which must not exist. The caller deletes it.

    Raises:
      OSError: A rename failed. The old directory is at `target` again.
    """
    if not target.exists():
        os.replace(new, target)
        return
    os.replace(target, aside)
    try:
        os.replace(new, target)
    except OSError:
        os.replace(aside, target)
        raise


def sync(*paths: Path) -> None:
    """Flushes files, or directories' lists of names, to the disk.

    Args:
      *paths: Files or directories.

    Raises:
      OSError: The operating system can't flush one of them.
    """
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


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
    """
    with path.open("ab") as file:
        lock(file.fileno(), wait=True)
        yield


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
