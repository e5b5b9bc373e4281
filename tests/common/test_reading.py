"""Files that are damaged, or no files: an error at once, and never a hang."""

import errno
import json
import os
import re
import socket
import tempfile
from pathlib import Path

import pytest

from tfloss.common.reading import check_directory, check_file, parse_json, read_file, read_json
from tfloss.errors import WorkdirError


@pytest.fixture
def place():
    """A directory of a user who is not root, who may do everything. The test runs as this user."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as folder:
        if root:
            os.chown(folder, 65534, 65534)
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            if root:
                os.seteuid(0)


def test_a_file_and_a_link_to_it_are_read(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").symlink_to("a")
    assert read_file(tmp_path / "a") == read_file(tmp_path / "b") == b"1"
    assert read_json(tmp_path / "b") == 1
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "c")
    with pytest.raises(IsADirectoryError):
        read_file(tmp_path)


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/full", "FIFO"])
def test_what_never_ends_is_not_read(device, tmp_path):
    path = tmp_path / "endless"
    os.mkfifo(path) if device == "FIFO" else path.symlink_to(device)
    with pytest.raises(OSError, match="it is a (device|FIFO), not a file") as error:
        read_file(path)
    assert error.value.errno == errno.EINVAL
    with pytest.raises(WorkdirError, match="must be a file, but it is a (device|FIFO)"):
        check_file(path)
    with pytest.raises(WorkdirError, match="must be a directory, but it is a (device|FIFO)"):
        check_directory(path)


def test_a_huge_file_is_not_read(tmp_path):
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(OSError, match=r"it has 1,099,511,627,776 bytes"):
        read_json(tmp_path / "huge")
    with pytest.raises(WorkdirError, match=r"776 bytes, but a part of them was never written"):
        check_file(tmp_path / "huge")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1,", "[" * 200 + "]" * 200, "[" * 100_000, '{"a":' * 500 + "1" + "}" * 500]
    + ["1" * 10_000, b"\xff\xfe", b"\x00" * 10],
    ids=range(9),
)
def test_what_is_no_json(text):
    with pytest.raises(ValueError):
        parse_json(text)


def test_json_of_a_hundred_levels_is_read():
    deep = json.loads("[" * 100 + "]" * 100)
    assert parse_json(json.dumps(deep)) == deep
    assert parse_json(b'{"a": [{"b": null}, 1.5]}') == {"a": [{"b": None}, 1.5]}


def test_what_can_be_used_or_made_is_accepted(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    check_directory(tmp_path / "link")
    check_directory(tmp_path / "new" / "below")
    check_file(tmp_path / "file")
    check_file(tmp_path / "new" / "file")
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]  # nothing was made


def test_what_is_in_the_way_is_named(tmp_path, monkeypatch):
    file, link, loop = (tmp_path / name for name in ("file", "link", "loop"))
    file.touch()
    link.symlink_to("/mnt/unmounted")
    loop.symlink_to("loop")
    for check in (check_directory, check_file):
        with pytest.raises(WorkdirError, match="link to /mnt/unmounted, which doesn't exist. Is "):
            check(link)
        with pytest.raises(WorkdirError, match=re.escape(f"{loop} can't be read: Too many")):
            check(loop)
        with pytest.raises(WorkdirError, match=re.escape(f"{file / 'below'} can't be read: Not a")):
            check(file / "below")
        with pytest.raises(WorkdirError, match="unmounted"):
            check(link / "below")
    with pytest.raises(WorkdirError, match=re.escape(f"{file} must be a directory, but it is a f")):
        check_directory(file)
    with pytest.raises(WorkdirError, match="must be a file, but it is a directory. Move it away"):
        check_file(tmp_path)
    monkeypatch.chdir(tmp_path)  # the path of a socket may only be short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("socket")
        with pytest.raises(WorkdirError, match="but it is a socket"):
            check_file(tmp_path / "socket")


def test_permissions_are_named(place):
    (place / "file").touch(0o400)
    check_file(place / "file", write=False)
    with pytest.raises(WorkdirError, match="file can't be written to: its permissions are -r----"):
        check_file(place / "file")
    place.chmod(0o500)
    check_directory(place, write=False)
    with pytest.raises(WorkdirError, match="can't be written to: its permissions are dr-x"):
        check_file(place / "new")
    place.chmod(0o000)
    with pytest.raises(
        WorkdirError, match="can't be read or written to or entered: its permissions are d---"
    ):
        check_directory(place)
    place.chmod(0o700)
