"""The lock of a trainer on its workdir, from its first `train` call to its end. Host code.

    lock = WorkdirLock(workdir)
    with lock.training():          # WorkdirInUseError if another trainer has the workdir
        lock.check()               # WorkdirError if the workdir was renamed, deleted or replaced

The kernel holds the lock, on the open file `workdir/.lock`. When a process ends, however it ends,
its lock is gone. The file names its owner. So a trainer finds out that another one has used the
workdir, and in a file system without locks, too.
"""

import contextlib
import errno
import json
import os
import secrets
import socket
import stat
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tfloss.common.files import lock, open_regular
from tfloss.common.replacement import delete
from tfloss.distribute.agreement import Agreement
from tfloss.errors import WorkdirError, WorkdirInUseError
from tfloss.trainer.workdir import check_entries

_UNSUPPORTED = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS}
_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ESTALE}
_OURS = b'{"pid": '  # how a lock file begins
_SECONDS = 1.0  # between two looks at the workdir
_warned: set[int] = set()


class WorkdirLock:
    """Locks a workdir for one trainer, until the trainer is gone.

    It is taken by the first `training`, and given back when the object is garbage collected, by
    `release`, or when the process ends. A later trainer of the same process may take it over,
    since a notebook makes its trainer again. The earlier trainer is then refused, because its
    state is older than the files. Between processes nobody takes over.

    Where the file system has no locks (some network file systems), it warns once per process. A
    second trainer is then noticed only after it has written its name into `.lock`. On Windows
    nothing is locked.

    Args:
      workdir: The directory, which must exist. None: nothing is locked.
      agreement: What several workers decide together: the first one locks for all.
    """

    def __init__(self, workdir: str | Path | None, agreement: Agreement | None = None):
        chief = agreement is None or agreement.chief
        self._on_all = (lambda _, take: take()) if agreement is None else agreement.run_on_all
        self._path = Path(workdir) / ".lock" if workdir is not None and chief else None
        self._handle: int | None = None
        self._close: Callable[[], Any] | None = None
        self._directory: os.stat_result | None = None
        self._name = secrets.token_hex(8)
        self._locks = True  # whether the file system has them
        self._trains = False
        self._looked = 0.0

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Inside the `with` no other trainer of this process takes the workdir over.

        Yields:
          Nothing.

        Raises:
          WorkdirInUseError: Another trainer uses the workdir, or has used it since.
          WorkdirError: `.lock` or another entry can't be used, or the workdir was renamed, deleted
            or replaced.
          WorkerError: One of these happened on the first worker, and this is another one.
        """
        self._on_all("lock the workdir", self._begin)
        self._trains = True
        try:
            yield
        finally:
            self._trains = False

    def check(self, *, now: bool = False) -> None:
        """Checks that the files of the trainer are still where its path says.

        Call it often: it looks once a second.

        Args:
          now: Whether to look in any case.

        Raises:
          WorkdirInUseError: Another trainer has taken over the workdir.
          WorkdirError: The workdir was renamed, deleted or replaced. Nothing can be saved there.
        """
        if self._path is None or self._close is None:
            return
        if self._handle is None:
            raise WorkdirInUseError(_taken_over(self._path))
        if now or time.monotonic() - self._looked >= _SECONDS:
            self._looked = time.monotonic()
            self._look(self._path, self._handle)

    def give_way(self, file: os.stat_result) -> bool:
        """Gives the workdir back if this lock is on a file, and its trainer is not training.

        Args:
          file: What `os.fstat` returns for the lock file of another trainer.

        Returns:
          Whether it was given back.
        """
        if self._handle is None or self._trains:
            return False
        if not os.path.samestat(os.fstat(self._handle), file):
            return False
        self.release()
        return True

    def delete_alone(self) -> None:
        """Deletes the lock file if nothing else is in the workdir, as before a dry run."""
        if self._handle is not None and self._path is not None:
            if [one.name for one in self._path.parent.iterdir()] == [self._path.name]:
                delete(self._path)

    def release(self) -> None:
        """Gives the workdir back. The trainer can't train in it again."""
        if self._close is not None:
            self._close()
        _held.discard(self)
        self._handle = None

    def _begin(self) -> None:
        if self._path is not None and self._trains:
            raise WorkdirInUseError(_in_use(self._path))
        if self._path is not None and self._close is None:
            self._acquire(self._path)
        self.check(now=True)
        if self._path is not None:
            check_entries(self._path.parent)

    def _acquire(self, path: Path) -> None:
        handle = _open(path)
        try:
            self._locks = _lock_or_take_over(path, handle)
            _check_own(path, handle)
            _write_owner(handle, self._name)
        except BaseException:
            os.close(handle)
            raise
        self._handle, self._close = handle, weakref.finalize(self, os.close, handle)
        self._directory = path.parent.stat()
        self._looked = time.monotonic()
        _held.add(self)

    def _look(self, path: Path, handle: int) -> None:
        """Compares what is at the path with what was locked."""
        found = owner = None
        try:
            found = path.lstat()
            owner = None if not stat.S_ISREG(found.st_mode) else _owner(path).get("trainer")
        except OSError as error:
            if error.errno not in _GONE:
                return  # a network file system that does not answer now may answer later
        if found is not None and os.path.samestat(found, os.fstat(handle)):
            if owner != self._name and not self._locks:
                raise WorkdirInUseError(_taken_over(path))
        # Some network file systems give a file another number. The lock on it is still held.
        elif owner != self._name or (self._locks and not _is_locked(path)):
            self._restore_file(path, handle)

    def _restore_file(self, path: Path, handle: int) -> None:
        """Locks a new `.lock` if only that file was deleted or replaced."""
        try:
            same = self._directory and os.path.samestat(path.parent.stat(), self._directory)
        except OSError:
            same = False
        if not same:
            raise WorkdirError(_lost(path, handle))
        if path.is_file() and _owner(path).get("trainer") not in (None, self._name):
            raise WorkdirInUseError(_taken_over(path))
        trains, _ = self._trains, self.release()
        self._acquire(path)
        self._trains = trains


_held: "weakref.WeakSet[WorkdirLock]" = weakref.WeakSet()  # the locks of this process


def _open(path: Path) -> int:
    """Opens the lock file, which must be a regular file and not a link to one."""
    try:
        return open_regular(path, os.O_RDWR)
    except OSError as error:
        raise WorkdirError(_no_lock_file(path, error.strerror or str(error))) from None


def _no_lock_file(path: Path, reason: str) -> str:
    if not path.parent.is_dir():
        return f"The workdir {path.parent} is gone. Make the Trainer again, which creates it."
    return f"The lock file {path} can't be opened: {reason}. Remove it, or use another workdir."


def _lock_or_take_over(path: Path, handle: int) -> bool:
    """Locks an open lock file, after an earlier trainer of this process has given it back.

    Returns:
      Whether the file system has locks.
    """
    for last in (False, True):
        try:
            lock(handle, wait=False)
            return True
        except BlockingIOError:
            if last or not _take_over(handle):
                raise WorkdirInUseError(_in_use(path)) from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise WorkdirError(_no_lock_file(path, error.strerror or str(error))) from None
            _warn(path, error)
            break
    return False


def _take_over(handle: int) -> bool:
    """Ends the lock of an earlier trainer of this process, unless that trains now."""
    wanted = os.fstat(handle)
    return any(one.give_way(wanted) for one in list(_held))


def _is_locked(path: Path) -> bool:
    """Whether somebody, this process maybe, holds the lock of a file."""
    handle = _open(path)
    try:
        lock(handle, wait=False)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _check_own(path: Path, handle: int) -> None:
    """Checks that a lock file is not the file of another program, whose content would be lost."""
    found = os.pread(handle, len(_OURS), 0).rstrip(b"\0")  # a power failure can leave zeros
    if not _OURS.startswith(found):
        raise WorkdirError(_no_lock_file(path, "tfloss did not write it"))


def _write_owner(handle: int, name: str) -> None:
    mine = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.time(),
        "trainer": name,
    }
    with contextlib.suppress(OSError):  # a full disk; the lock is held
        os.truncate(handle, 0)
        os.pwrite(handle, json.dumps(mine).encode(), 0)


def _owner(path: Path) -> dict[str, object]:
    """What a lock file says about its owner; empty if it can't be read."""
    with contextlib.suppress(ValueError, RecursionError):
        with path.open("rb") as file:
            found = json.loads(file.read(4096))
        if isinstance(found, dict):
            return found
    return {}


def _in_use(path: Path) -> str:
    """The error message, with what the lock file says about the holder."""
    holder, advice = "another trainer", "Wait until it ends, stop it, or use another workdir."
    with contextlib.suppress(OSError, KeyError, TypeError, ValueError, OverflowError):
        found = _owner(path)
        pid, host = found["pid"], found["host"]
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(str(found["since"]))))
        own = pid == os.getpid() and host == socket.gethostname()
        which = "another Trainer of this process" if own else "another trainer"
        holder = f"{which} (process {pid} on {host}, since {since})"
        if not own:
            advice += " A notebook keeps the workdir until its trainer is deleted, or it is closed."
    return f"The workdir {path.parent} is in use by {holder}. {advice}"


def _taken_over(path: Path) -> str:
    return (
        f"Another trainer has taken over the workdir {path.parent} since this one used it. The "
        "checkpoints and logs there are newer than the state of this trainer, which can't continue "
        "from them. Use the newer trainer, or make a new one, which resumes from the newest "
        "checkpoint."
    )


def _lost(path: Path, handle: int) -> str:
    """The error message, with the new place of the directory where Linux knows it."""
    place = ""
    with contextlib.suppress(OSError):
        now = os.readlink(f"/proc/self/fd/{handle}")
        if not now.endswith(" (deleted)") and Path(now) != path:
            place = f" Its files are now in {Path(now).parent}."
    return (
        f"The workdir {path.parent} was renamed, deleted or replaced during the run.{place} "
        "Training stopped, because what it writes would be lost. To continue from the newest "
        "checkpoint there is, start again with the path where the checkpoints are now."
    )


def _warn(path: Path, error: OSError) -> None:
    """Warns that there are no locks, once for each reason."""
    if error.errno not in _warned:
        _warned.add(error.errno or 0)
        warnings.warn(
            f"{path} can't be locked ({error.strerror}): the file system has no locks. A second "
            "trainer in this workdir is noticed late; make sure that there is none.",
            stacklevel=5,
        )


def _release_in_child() -> None:
    """Closes the locks in a forked process, which would hold them after its parent has ended."""
    for one in list(_held):
        one.release()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_release_in_child)
