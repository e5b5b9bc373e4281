"""The directory that a run writes to, its lock, and what is written once it trains. Host code.

    with locked(workdir):
        ...    # whoever else tries it meanwhile gets WorkdirInUseError

The kernel holds the lock, on the open file `workdir/.lock`: when a process dies, however it dies,
its lock is gone. The content of the file is only for the error message.
"""

import contextlib
import errno
import json
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from tfloss.common.files import lock
from tfloss.errors import WorkdirInUseError

_UNSUPPORTED = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS}
_held: set[int] = set()
_deferred: dict[Path, Callable[[], object]] = {}  # by workdir
_warned: set[int] = set()


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
        probe = workdir / f".tfloss_write_test_{os.getpid()}_{socket.gethostname()}"
        probe.write_bytes(b"")
        probe.unlink()
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


@contextlib.contextmanager
def locked(workdir: str | Path | None) -> Iterator[None]:
    """Locks a workdir for this process and this `with` block.

    Where the file system has no locks (some network file systems), it warns once per process and
    continues without a lock. On Windows it locks nothing.

    Args:
      workdir: The directory, which must exist. None: nothing is locked.

    Yields:
      Nothing.

    Raises:
      WorkdirInUseError: Another trainer, in this process or another one, uses the workdir.
      OSError: `workdir/.lock` can't be written.
    """
    if workdir is None:
        yield
        return
    path = Path(workdir) / ".lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    _held.add(handle)
    try:
        try:
            lock(handle, wait=False)
        except BlockingIOError:
            raise WorkdirInUseError(_in_use(path)) from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            _warn(path, error)
        mine = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
        os.truncate(handle, 0)
        os.write(handle, json.dumps(mine).encode())
        yield
    finally:
        if handle in _held:  # not in a forked child
            _held.discard(handle)
            os.close(handle)  # which unlocks it


def _in_use(path: Path) -> str:
    """The error message, with what the lock file says about the holder."""
    holder = "another trainer"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(path.read_text())
        pid, host = found["pid"], found["host"]
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found["since"]))
        own = pid == os.getpid() and host == socket.gethostname()
        which = "another Trainer of this process" if own else "another trainer"
        holder = f"{which} (process {pid} on {host}, since {since})"
    return (
        f"The workdir {path.parent} is in use by {holder}. Wait until it ends, stop it, or use "
        "another workdir."
    )


def _warn(path: Path, error: OSError) -> None:
    """Warns that there are no locks, once for each reason."""
    if error.errno not in _warned:
        _warned.add(error.errno or 0)
        warnings.warn(
            f"{path} can't be locked ({error.strerror}): the file system has no locks. Nothing "
            "will stop a second trainer in this workdir; make sure that there is none.",
            stacklevel=4,
        )


def _release_in_child() -> None:
    """Closes the locks in a forked process, which would hold them after its parent has ended."""
    for handle in _held:
        os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_release_in_child)
