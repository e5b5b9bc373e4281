"""The manifest of a checkpoint: what it contains, and the checksums of its files.

`manifest.json` lists every other file with its size, modification time and SHA-256. It starts with
the SHA-256 of its own remaining bytes, so that no byte of a checkpoint can change unnoticed. Host
code, without TensorFlow, so that the command `tfloss checkpoints` starts fast.
"""

import contextlib
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tfloss.common.checksums import file_checksum
from tfloss.common.reading import check_directory, parse_json, read_file
from tfloss.errors import CheckpointDeletedError, CheckpointError, WorkdirError

T = TypeVar("T")

FORMAT = 2
MANIFEST = "manifest.json"
_ENTRIES = {"format", "step", "files"}
_BEGIN, _END = b'{"sha256": "', b'",'
_HEADER = len(_BEGIN) + 64 + len(_END)  # bytes before those that the checksum covers
_ATTEMPTS = 100  # to read a checkpoint before a trainer deletes it
_FILE_NAME = re.compile(r"\w[\w.-]*")


def write_manifest(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Writes `manifest.json` with the format and the checksums of all files in the directory.

    Args:
      directory: The directory of the checkpoint, with all other files.
      manifest: The other entries.
    """
    files = {path.name: _entry(path) for path in sorted(directory.iterdir())}
    text = json.dumps({"format": FORMAT, **manifest, "files": files}, indent=1)
    content = text[1:].encode()
    header = _BEGIN + hashlib.sha256(content).hexdigest().encode() + _END
    (directory / MANIFEST).write_bytes(header + content)


def load_manifest(path: str | Path) -> dict[str, Any]:
    """Reads the manifest of a checkpoint.

    Args:
      path: The directory of the checkpoint.

    Returns:
      The content of `manifest.json`.

    Raises:
      CheckpointError: The manifest can't be read, was changed, or has another format.
      CheckpointDeletedError: There is no such directory, or it was deleted meanwhile.
    """
    with deletion_noticed(path):
        try:
            return _read(Path(path))
        except ValueError as error:
            raise _corrupt(path, str(error)) from None


def load_file(path: str | Path, name: str) -> bytes | None:
    """Reads a file that was saved with a checkpoint.

    Args:
      path: The directory of the checkpoint.
      name: The name of the file.

    Returns:
      The content; None if the checkpoint was saved without this file.

    Raises:
      CheckpointError: The file is missing or was changed.
      CheckpointDeletedError: The checkpoint was deleted meanwhile.
    """
    with deletion_noticed(path):
        entry = load_manifest(path)["files"].get(name)
        if entry is None:
            return None
        if problem := _file_problem(Path(path) / name, entry):
            raise _corrupt(path, problem)
        return (Path(path) / name).read_bytes()


def unlisted_files(path: Path) -> list[str]:
    """Lists what is in the directory of a checkpoint, but was not saved with it.

    Args:
      path: The directory of the checkpoint.

    Returns:
      The sorted names of files and directories that the manifest doesn't list. Without a readable
      manifest these are all.
    """
    try:
        listed = {MANIFEST, *_read(path)["files"]}
    except ValueError:
        listed = set[str]()
    return sorted({entry.name for entry in path.iterdir()} - listed)


def is_file_name(name: object) -> bool:
    """Returns whether a manifest may list a file of this name: a plain one, in no other directory.

    Args:
      name: Any JSON value.
    """
    return isinstance(name, str) and _FILE_NAME.fullmatch(name) is not None


def find_problem(path: Path, step: int, *, trust_times: bool = False) -> str | None:
    """Checks all files of a checkpoint, reading all of them.

    Args:
      path: The directory of the checkpoint.
      step: The step that the directory is named after.
      trust_times: Whether a file with the size and modification time that it was written with is
        not read, because nobody has written to it since. A copy usually has another time.

    Returns:
      The first problem, in half a sentence that starts with the name of the file; None if the
      checkpoint is valid.

    Raises:
      CheckpointDeletedError: There is no such directory, or it was deleted meanwhile.
    """
    before = _identity(path)
    problem = _first_problem(path, step, trust_times)
    if problem is not None:
        _check_same(path, before)
    return problem


@contextlib.contextmanager
def deletion_noticed(path: str | Path) -> Iterator[None]:
    """Inside the `with`, files of a checkpoint are read that another process may delete.

    A trainer renames a checkpoint before it deletes the files. So the directory is another one, or
    there is none, if something failed because of that.

    Args:
      path: The directory of the checkpoint.

    Yields:
      Nothing.

    Raises:
      CheckpointDeletedError: The checkpoint was replaced by another one, or it was deleted, and
        reading it failed.
    """
    before = _identity(path)
    try:
        yield
    except (CheckpointError, OSError):
        _check_same(path, before)
        raise
    if before is not None and _identity(path) not in (before, None):
        _check_same(path, before)


def again_if_deleted(read: Callable[[], T]) -> T:
    """Chooses a checkpoint and reads it, again if a trainer beside this process deletes it.

    Args:
      read: A function that lists the checkpoints, chooses one of them and reads it.

    Returns:
      What the function returns.

    Raises:
      CheckpointDeletedError: The chosen checkpoint was deleted each time.
    """
    for _ in range(_ATTEMPTS - 1):
        with contextlib.suppress(CheckpointDeletedError):
            return read()
    return read()


def _identity(path: str | Path) -> tuple[int, int] | None:
    """Returns what tells a directory from another one at the same path; None without one."""
    for look in (os.stat, os.lstat):  # a link to nothing is no deleted checkpoint
        with contextlib.suppress(OSError):
            found = look(path)
            return found.st_dev, found.st_ino
    return None


def _check_same(path: str | Path, before: tuple[int, int] | None) -> None:
    """Raises CheckpointDeletedError if there is no directory, or another one than before."""
    if before is None:
        raise CheckpointDeletedError(
            f"There is no checkpoint {path}. If there was one, it was deleted."
        )
    if _identity(path) != before:
        raise CheckpointDeletedError(
            f"The checkpoint {path} was deleted or replaced while it was read: a trainer writes "
            "to the same directory. Read a newer one, or keep more of them (SaveCheckpoint's "
            "keep_last)."
        )


def _first_problem(path: Path, step: int, trust_times: bool) -> str | None:
    try:
        manifest = _read(path)
    except ValueError as error:
        return str(error)
    if manifest["step"] != step:
        return f"{MANIFEST} belongs to step {manifest['step']}"
    for name, entry in manifest["files"].items():
        if trust_times and _is_untouched(path / name, entry):
            continue
        if problem := _file_problem(path / name, entry):
            return problem
    return None


def _entry(path: Path) -> dict[str, Any]:
    """Describes a file for the manifest."""
    found = path.stat()
    return {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns, "sha256": file_checksum(path)}


def _is_untouched(path: Path, entry: Mapping[str, Any]) -> bool:
    """Whether a file has the size and the modification time of its entry, if that has one."""
    try:
        found = path.stat()
    except OSError:
        return False
    return (found.st_size, found.st_mtime_ns) == (entry["bytes"], entry.get("mtime_ns"))


def _corrupt(path: str | Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"The checkpoint {path} is corrupt: {problem}. To continue from the checkpoint before it, "
        "move it away."
    )


def _read(path: Path) -> dict[str, Any]:
    """Reads and checks the manifest. Raises ValueError with the problem in half a sentence."""
    try:
        check_directory(path, write=False)
        data = read_file(path / MANIFEST)
    except WorkdirError as error:
        raise ValueError(str(error).removesuffix(".")) from None
    except FileNotFoundError:
        raise ValueError(f"{MANIFEST} is missing") from None
    except OSError as error:
        raise ValueError(f"{MANIFEST} can't be read ({error.strerror})") from None
    header = _BEGIN + hashlib.sha256(data[_HEADER:]).hexdigest().encode() + _END
    if data[:_HEADER] != header:
        raise ValueError(f"{MANIFEST} was changed after it was written: its checksum differs")
    manifest = parse_json(data)
    if not isinstance(manifest, dict) or not _ENTRIES <= manifest.keys():
        raise ValueError(f"{MANIFEST} lacks one of its entries: {', '.join(sorted(_ENTRIES))}")
    if manifest["format"] != FORMAT:
        raise ValueError(
            f"{MANIFEST} has format {manifest['format']}, but this version of tfloss reads {FORMAT}"
        )
    for name in manifest["files"]:
        if not is_file_name(name):
            raise ValueError(f"{MANIFEST} lists {name!r}, which is not a plain file name")
    return manifest


def _file_problem(path: Path, entry: Mapping[str, Any]) -> str | None:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # reading a FIFO or a device may never end
            return f"{path.name} is not a regular file"
        if found.st_size != entry["bytes"]:
            return f"{path.name} has {found.st_size:,} bytes, but {entry['bytes']:,} were written"
        if file_checksum(path) != entry["sha256"]:
            return f"{path.name} was changed after it was written: its checksum differs"
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} can't be read ({error.strerror})"
    return None
