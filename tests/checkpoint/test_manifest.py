"""The manifest: its checksums reveal every change."""

import hashlib
import json
import os

import pytest

from tfloss.checkpoint.manifest import (
    find_problem,
    load_file,
    load_manifest,
    unlisted_files,
    write_manifest,
)
from tfloss.errors import CheckpointError


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint of step 3 with one file."""
    (tmp_path / "data.bin").write_bytes(bytes(range(100)))
    write_manifest(tmp_path, {"step": 3, "extra": {"note": "ä"}})
    return tmp_path


def test_a_manifest_is_read_as_it_was_written(checkpoint):
    manifest = load_manifest(checkpoint)
    assert (manifest["step"], manifest["extra"]) == (3, {"note": "ä"})
    assert list(manifest["files"]) == ["data.bin"] and manifest["files"]["data.bin"]["bytes"] == 100
    assert find_problem(checkpoint, 3) is None
    assert load_file(checkpoint, "data.bin") == bytes(range(100))
    assert load_file(checkpoint, "other.bin") is None


def test_every_byte_of_the_manifest_counts(checkpoint):
    file = checkpoint / "manifest.json"
    content = file.read_bytes()
    for index in range(len(content)):
        file.write_bytes(content[:index] + bytes([content[index] ^ 0x01]) + content[index + 1 :])
        problem = find_problem(checkpoint, 3) or ""
        assert "manifest.json was changed after it was written" in problem, index
    file.write_bytes(content)
    assert find_problem(checkpoint, 3) is None


def test_a_manifest_of_another_step_is_a_problem(checkpoint):
    assert find_problem(checkpoint, 4) == "manifest.json belongs to step 3"


def test_a_changed_file_is_named(checkpoint):
    (checkpoint / "data.bin").write_bytes(bytes(100))
    message = "corrupt: data.bin was changed after it was written.*move it away"
    with pytest.raises(CheckpointError, match=message):
        load_file(checkpoint, "data.bin")
    (checkpoint / "data.bin").write_bytes(bytes(7))
    assert find_problem(checkpoint, 3) == "data.bin has 7 bytes, but 100 were written"


@pytest.mark.parametrize("name", ["/etc/passwd", "../data.bin", "a/b", "..", "", "a\n"])
def test_a_file_outside_of_the_checkpoint_is_not_read(checkpoint, name):
    write_with_files(checkpoint, {name: {"bytes": 0, "sha256": ""}})
    assert find_problem(checkpoint, 3) == (
        f"manifest.json lists {name!r}, which is not a plain file name"
    )
    with pytest.raises(CheckpointError, match="which is not a plain file name"):
        load_file(checkpoint, name)


def write_with_files(path, files):
    """Writes a manifest as somebody else may write it: with the right checksum."""
    content = json.dumps({"format": 2, "step": 3, "files": files})[1:].encode()
    header = f'{{"sha256": "{hashlib.sha256(content).hexdigest()}",'.encode()
    (path / "manifest.json").write_bytes(header + content)


def test_a_fifo_or_device_is_not_read(checkpoint):
    (checkpoint / "data.bin").unlink()
    os.mkfifo(checkpoint / "data.bin")
    assert find_problem(checkpoint, 3) == "data.bin is not a regular file"
    (checkpoint / "data.bin").unlink()
    (checkpoint / "data.bin").symlink_to("/dev/zero")
    write_with_files(checkpoint, {"data.bin": {"bytes": 0, "sha256": ""}})
    assert find_problem(checkpoint, 3) == "data.bin is not a regular file"


def test_files_that_were_not_saved_are_listed(checkpoint):
    assert unlisted_files(checkpoint) == []
    (checkpoint / "notes").mkdir()
    assert unlisted_files(checkpoint) == ["notes"]
    (checkpoint / "manifest.json").unlink()
    assert unlisted_files(checkpoint) == ["data.bin", "notes"]


def test_another_format_is_named(checkpoint, monkeypatch):
    monkeypatch.setattr("tfloss.checkpoint.manifest.FORMAT", 99)
    with pytest.raises(CheckpointError, match="has format 2, but this version of tfloss reads 99"):
        load_manifest(checkpoint)


def test_the_manifest_is_plain_json(checkpoint):
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    assert list(manifest)[:2] == ["sha256", "format"]
