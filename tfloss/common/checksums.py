"""Checksums that prove that a file or a directory is what tfloss wrote. Host code.

written = tree_checksums(path)
tree_checksums(path) == written       # nothing was added, removed or changed since
"""

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from tfloss.common import nested_diff


def file_checksum(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal digits.

    Args:
      path: The file.

    Raises:
      OSError: It can't be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # releases the GIL


def tree_checksums(path: Path) -> dict[str, str]:
    """Describes a file, or a directory with all that is in it. Links are not followed.

    Args:
      path: The file or directory.

    Returns:
      `{relative path: description}`: the SHA-256 of a file, where a link leads to, or the kind. The
      path itself has the name ".". A missing one gives an empty dictionary.

    Raises:
      OSError: A file can't be read.
    """
    if not os.path.lexists(path):
        return {}
    found = {".": _describe(path)}
    if found["."] == "directory":
        for folder, folders, files in os.walk(path):
            for name in sorted(folders + files):
                entry = Path(folder, name)
                found[entry.relative_to(path).as_posix()] = _describe(entry)
    return found


def first_change(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Names the first difference between two results of `tree_checksums`.

    Args:
      before: The earlier result.
      now: The later result, which differs.

    Returns:
      Half a sentence, such as "'notes.txt' was added".
    """
    name, (old, new) = next(iter(sorted(nested_diff.differences(before, now).items())))
    if old is nested_diff.ABSENT:
        return f"{name!r} was added"
    return f"{name!r} was {'removed' if new is nested_diff.ABSENT else 'changed'}"


def _describe(path: Path) -> str:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return f"link to {os.readlink(path)}"
    if stat.S_ISDIR(mode):
        return "directory"
    return file_checksum(path) if stat.S_ISREG(mode) else "special file"
