"""Files and directories replaced as a whole: the old or the new one at every instant. Host code.

    with replacement(path) as new:
        write(new.path)              # a file or a directory that doesn't exist yet
        new.commit()                 # without this line nothing changes
    replace_file(path, b"...")
    delete(path)
    remove_leftovers(directory)      # of processes that were killed

All that tfloss replaces or deletes goes through this module. The new content is prepared beside
its target, in a *staging directory* `.NAME.TOKEN.tfloss`. The token proves that tfloss made the
directory, since half of it is a checksum of the rest of the name. A lock in it shows that its
process lives. So the next run can remove what a killed process left, and nothing else.

A directory takes the place of another one in a single system call, `renameat2(RENAME_EXCHANGE)`. A
link to directories with version numbers would do the same on more file systems, but users would
find a link where they now find the plain directory that they copy, mount and delete. Where that
call doesn't exist (NFS, macOS), there are two renames. In between the old directory is in the
staging directory, and the next run puts it back if the process dies there.
"""

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tfloss.common.files import has_locks, lock, open_regular, sync
from tfloss.common.unique_names import unique_name

_SUFFIX = ".tfloss"
_STAGING_NAME = re.compile(r"\.(.+)\.([0-9a-f]{8})([0-9a-f]{8})" + re.escape(_SUFFIX), re.DOTALL)
_LOCK, _NEW, _EARLIER = "lock", "new", "earlier"  # in a staging directory
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of <fcntl.h> and <linux/fs.h>
_NO_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


class Replacement:
    """What is going to be at a path.

    Attributes:
      path: Where to write the new file or directory. It has the name of the target.
    """

    def __init__(self, target: Path, staging: Path):
        self._target, self._staging = target, staging
        self.path = staging / _NEW / target.name

    def commit(self) -> None:
        """Puts the new content at the target. It is on the disk before, its name is afterwards.

        Raises:
          OSError: The new content is missing or can't be put there. The old one is still there.
        """
        new, target = self.path, self._target
        _sync_tree(new)
        if not self._renamed() and not exchange(new, target):
            os.replace(target, self._staging / _EARLIER)
            os.replace(new, target)
        sync(target.parent)

    def _renamed(self) -> bool:
        """Renames the new content where that is enough: it doesn't replace a directory."""
        if os.path.lexists(self._target) and _is_directory(self._target) | _is_directory(self.path):
            return False
        try:
            os.replace(self.path, self._target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return False  # another process has just created a directory there
        return True


@contextlib.contextmanager
def replacement(target: Path) -> Iterator[Replacement]:
    """Prepares new content for a path. What is there stays until `Replacement.commit`.

    At the end of the `with` the old content is deleted, or the new one if it was not committed.
    Removes what killed processes left in the same directory, too. The caller makes sure that what
    it replaces was written by tfloss.

    Args:
      target: The path of a file or directory, which may be missing. Its parent must exist. If it is
        a link, the link is replaced.

    Yields:
      The new content.

    Raises:
      OSError: The parent can't be written to.
    """
    with _staging(target) as staging:
        yield Replacement(target, staging)


def replace_file(
    path: Path, content: bytes | str, *, is_own: Callable[[bytes], bool] = lambda old: True
) -> None:
    """Replaces or creates a file: readers see the old content or the new one.

    Args:
      path: The file. Its directory must exist. If it is a link, the link is replaced.
      content: The new content. Text is encoded as UTF-8.
      is_own: Returns whether tfloss wrote the old content. If not, a copy of it stays as
        `superseded.<name>`.

    Raises:
      OSError: The file can't be written. The old content is still there.
    """
    data = content.encode() if isinstance(content, str) else content
    if _is_directory(path):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with replacement(path) as new:
        new.path.write_bytes(data)
        if os.path.lexists(path) and stat.S_ISREG((before := path.lstat()).st_mode):
            new.path.chmod(stat.S_IMODE(before.st_mode))
            if (old := path.read_bytes()) != data and not is_own(old):
                shutil.copy2(path, _superseded_path(path))
        new.commit()


def cut_file(path: Path, size: int) -> None:
    """Removes the end of a file that tfloss has written, in a single system call.

    Args:
      path: The file. A link is refused.
      size: The number of bytes that stay.

    Raises:
      OSError: The file can't be opened or cut.
    """
    handle = open_regular(path, os.O_WRONLY)
    try:
        os.ftruncate(handle, size)
    finally:
        os.close(handle)


def set_aside(path: Path) -> None:
    """Renames a file or directory to `superseded.<name>`, which is a new path.

    Args:
      path: The path. "tfevents" in its name is changed, so that TensorBoard doesn't read it.

    Raises:
      OSError: It can't be renamed.
    """
    os.replace(path, _superseded_path(path))


def copy_aside(path: Path) -> None:
    """Copies a file to `superseded.<name>`, which is a new path.

    Args:
      path: The path. "tfevents" in its name is changed, so that TensorBoard doesn't read it.

    Raises:
      OSError: It can't be copied.
    """
    with replacement(_superseded_path(path)) as copy:
        shutil.copy2(path, copy.path)
        copy.commit()


def _superseded_path(path: Path) -> Path:
    name = path.name.replace("tfevents", "events")
    taken = {each.name.removesuffix(f".{name}") for each in path.parent.iterdir()}
    return path.with_name(f"{unique_name('superseded', taken, '.')}.{name}")


def delete(path: Path) -> None:
    """Deletes a file or a directory. It vanishes as a whole, before its content is deleted.

    Args:
      path: The path. A link is deleted, not what it refers to.

    Raises:
      OSError: It can't be renamed.
    """
    with _staging(path) as staging:
        os.replace(path, staging / _NEW / path.name)


def remove_leftovers(directory: Path) -> None:
    """Removes what killed processes left in a directory, and puts old directories back.

    It touches staging directories only, and none of a live process. Where the file system has no
    locks, it is unknown who lives, and all stay. Errors are ignored: the next call tries again.

    Args:
      directory: The directory. It may be missing.
    """
    for staging, target in _staging_directories(directory) if has_locks() else ():
        try:
            handle = os.open(staging / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:  # killed as its first or its last act
            _dissolve(staging)
            continue
        except OSError:
            continue
        with contextlib.suppress(OSError):
            lock(handle, wait=False)
            _discard_content(staging, target)
            _dissolve(staging)
        os.close(handle)


def displaced(directory: Path) -> dict[Path, Path]:
    """Finds what is between the two renames of a replacement, now or because of a kill.

    Args:
      directory: The directory to look in. It may be missing.

    Returns:
      `{path that is missing: where its old directory is}`.
    """
    found = {target: staging / _EARLIER for staging, target in _staging_directories(directory)}
    return {k: v for k, v in found.items() if os.path.lexists(v) and not os.path.lexists(k)}


def exchange(one: Path, other: Path) -> bool:
    """Exchanges two paths in a single system call.

    Args:
      one: A path.
      other: Another path on the same file system.

    Returns:
      Whether the system can do it. If not, nothing has changed.

    Raises:
      OSError: It can, but not with these paths.
    """
    linux = sys.platform == "linux"
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if linux else None
    if function is None:
        return False
    paths = os.fsencode(one), os.fsencode(other)
    if function(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0:
        return True
    if (code := ctypes.get_errno()) in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


@contextlib.contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """Inside the `with` there is a locked staging directory for a target."""
    remove_leftovers(target.parent)
    staging, handle = _create(target)
    try:
        (staging / _NEW).mkdir()
        yield staging
    finally:
        with contextlib.suppress(OSError):  # the next run tries again
            _discard_content(staging, target)
        os.close(handle)
        _dissolve(staging)


def _create(target: Path) -> tuple[Path, int]:
    """Creates a staging directory. Returns it, and the descriptor that holds its lock."""
    while True:
        random = secrets.token_hex(4)
        staging = target.with_name(f".{target.name}.{random}{_proof(target.name, random)}{_SUFFIX}")
        staging.mkdir(mode=0o700)
        try:
            handle = os.open(staging / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except FileNotFoundError:  # another process took the empty directory for a left-over
            continue
        with contextlib.suppress(OSError):  # a file system without locks
            lock(handle, wait=True)
        if os.fstat(handle).st_nlink:
            return staging, handle
        os.close(handle)  # another process locked it first, and removed it


def _proof(name: str, random: str) -> str:
    """The part of a staging directory's name that shows who made it."""
    return hashlib.sha256(f"tfloss {random} {name}".encode(errors="surrogateescape")).hexdigest()[
        :8
    ]


def _staging_directories(directory: Path) -> list[tuple[Path, Path]]:
    """Lists the staging directories in a directory, each with its target."""
    found: list[tuple[Path, Path]] = []
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if match := _STAGING_NAME.fullmatch(entry.name):
                name, random, proof = match.groups()
                if proof == _proof(name, random) and entry.is_dir(follow_symlinks=False):
                    found.append((directory / entry.name, directory / name))
    return found


def _discard_content(staging: Path, target: Path) -> None:
    """Puts the old directory back if nothing took its place, and removes everything else."""
    earlier = staging / _EARLIER
    if os.path.lexists(earlier) and not os.path.lexists(target):
        os.replace(earlier, target)
    for path in staging.iterdir():
        if path.name != _LOCK:
            if _is_directory(path):
                shutil.rmtree(path)
            else:
                path.unlink()


def _dissolve(staging: Path) -> None:
    """Removes an empty staging directory. One that is not empty stays."""
    with contextlib.suppress(OSError):
        if {path.name for path in staging.iterdir()} <= {_LOCK}:
            (staging / _LOCK).unlink(missing_ok=True)
            staging.rmdir()


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _sync_tree(path: Path) -> None:
    """Flushes a file, or a directory with all that is in it."""
    if not _is_directory(path):
        sync(path)
        return
    for folder, _, names in os.walk(path, topdown=False):
        files = [Path(folder, name) for name in names]
        sync(*(file for file in files if stat.S_ISREG(file.lstat().st_mode)), Path(folder))
