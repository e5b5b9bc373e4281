"""What a checkpoint says of itself, and whether its files are still what was written.

`manifest.json` lists every other file with its size and SHA-256, and begins with the SHA-256 of
all that follows in it, so that no byte of a checkpoint can change unnoticed. Host code, without
TensorFlow: the `tfloss checkpoints` command is quick.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfloss.errors import CheckpointError

FORMAT = 2
MANIFEST = "manifest.json"
_BEGIN, _END = b'{"sha256": "', b'",'
_REST = len(_BEGIN) + 64 + len(_END)  # where that begins which the checksum is of


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Adds the format and the checksums of all files in the folder, and writes `manifest.json`."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.iterdir())
    }
    text = json.dumps({"format": FORMAT, **manifest, "files": files}, indent=1)
    rest = text[1:].encode()
    begin = _BEGIN + hashlib.sha256(rest).hexdigest().encode() + _END
    (folder / MANIFEST).write_bytes(begin + rest)


def load_manifest(path: str | Path) -> dict[str, Any]:
    """What `manifest.json` of a checkpoint says.

    Raises CheckpointError if it can't be read, was altered, or is of another format.
    """
    try:
        return _read(Path(path))
    except ValueError as error:
        raise CheckpointError(
            f"The checkpoint {path} is damaged: {error}. To go on from the one before, move it "
            "away."
        ) from None


def load_file(path: str | Path, name: str) -> bytes | None:
    """The content of one of a checkpoint's `files`; None if it was saved without.

    Raises CheckpointError if it is missing, or not what was written.
    """
    entry = load_manifest(path)["files"].get(name)
    if entry is None:
        return None
    if wrong := _wrong_file(Path(path) / name, entry):
        raise CheckpointError(
            f"The checkpoint {path} is damaged: {wrong}. To go on from the one before, move it "
            "away."
        )
    return (Path(path) / name).read_bytes()


def problem(path: Path, step: int) -> str | None:
    """What is wrong with a checkpoint, by file, or None. Reads all of it."""
    try:
        manifest = _read(path)
    except ValueError as error:
        return str(error)
    if manifest["step"] != step:
        return f"{MANIFEST} is that of step {manifest['step']}"
    for name, entry in manifest["files"].items():
        if wrong := _wrong_file(path / name, entry):
            return wrong
    return None


def _read(path: Path) -> dict[str, Any]:
    """The manifest. Raises ValueError, saying what is wrong in half a sentence."""
    try:
        data = (path / MANIFEST).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{MANIFEST} is missing") from None
    except OSError as error:
        raise ValueError(f"{MANIFEST} can't be read ({error.strerror})") from None
    begin = _BEGIN + hashlib.sha256(data[_REST:]).hexdigest().encode() + _END
    if data[:_REST] != begin:
        raise ValueError(f"{MANIFEST} is not what was written: its checksum differs")
    manifest = json.loads(data)
    if manifest["format"] != FORMAT:
        raise ValueError(
            f"{MANIFEST} is of format {manifest['format']}, and this tfloss reads {FORMAT}"
        )
    return manifest


def _wrong_file(path: Path, entry: Mapping[str, Any]) -> str | None:
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            return f"{path.name} has {size:,} bytes, and {entry['bytes']:,} were written"
        if _sha256(path) != entry["sha256"]:
            return f"{path.name} is not what was written: its checksum differs"
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} can't be read ({error.strerror})"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # other threads run meanwhile
