"""One trainer at a time in a workdir. Host code.

    with locked(workdir):
        ...    # whoever else tries it meanwhile gets WorkdirInUseError

The lock is the kernel's, on the open file `workdir/.lock`: when a process dies, however it dies,
its lock is gone. What the file says is only for the message.
"""

import contextlib
import errno
import json
import os
import socket
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from tfloss.common.files import lock
from tfloss.errors import WorkdirInUseError

_UNSUPPORTED = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS}
_held: set[int] = set()
_warned: set[int] = set()


@contextlib.contextmanager
def locked(workdir: str | Path) -> Iterator[None]:
    """Holds a workdir, which must exist, for this process and this `with`. Host.

    Where the file system has no locks (some network ones) it warns, once a process, and goes on
    without; so it does, silently, on Windows.

    Raises:
      WorkdirInUseError: another trainer, in this process or another, is at work there.
      OSError: `workdir/.lock` can't be written.
    """
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
    holder = "another trainer"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(path.read_text())
        pid, host = found["pid"], found["host"]
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found["since"]))
        own = pid == os.getpid() and host == socket.gethostname()
        which = "another Trainer of this process" if own else "another trainer"
        holder = f"{which} (process {pid} on {host}, since {since})"
    return (
        f"The workdir {path.parent} is in use by {holder}. Wait for it, end it, or give this one "
        "another workdir."
    )


def _warn(path: Path, error: OSError) -> None:
    if error.errno not in _warned:
        _warned.add(error.errno or 0)
        warnings.warn(
            f"{path} can't be locked ({error.strerror}): the file system has no locks. Nothing "
            "will stop a second trainer in this workdir; see to it that there is none.",
            stacklevel=4,
        )


def _release_in_child() -> None:
    """A forked process shares its parent's locks, and would keep them when the parent is gone."""
    for handle in _held:
        os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_release_in_child)
