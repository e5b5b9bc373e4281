"""Files are opened without following links, named inside a folder, and locked by one process."""

import errno
import os
import threading

import pytest

from tfloss.common.files import escaping_name, locked_file, open_regular, sync, write_files


def test_a_regular_file_is_opened_or_created(tmp_path):
    for content in (b"a", b"b"):
        handle = open_regular(tmp_path / "file", os.O_WRONLY | os.O_APPEND)
        os.write(handle, content)
        os.close(handle)
    assert (tmp_path / "file").read_bytes() == b"ab"


@pytest.mark.parametrize("to", ["victim", "missing", "/dev/null"])
def test_a_link_is_not_followed(tmp_path, to):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / to)
    with pytest.raises(OSError, match="it is a link, and tfloss doesn't write through links.*link"):
        open_regular(tmp_path / "link", os.O_RDWR | os.O_TRUNC)
    with pytest.raises(OSError, match="it is a link"), locked_file(tmp_path / "link"):
        pass
    assert (tmp_path / "victim").read_text() == "mine" and not (tmp_path / "missing").exists()


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
def test_a_fifo_is_refused_without_waiting(tmp_path, flags):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="it is not a regular file.*fifo"):
        open_regular(tmp_path / "fifo", flags)


def test_files_are_written_into_a_folder(tmp_path):
    write_files(tmp_path, {"a": b"1", "b/c.txt": b"2"})
    assert (tmp_path / "a").read_bytes() == b"1"
    assert (tmp_path / "b/c.txt").read_bytes() == b"2"


@pytest.mark.parametrize(
    "name", ["/a", "..", "../a", "b/../../a", "", ".", "b/..", "C:\\a", "..\\a", "\\a", "a\0b"]
)
def test_no_file_is_written_outside_of_the_folder(tmp_path, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    assert escaping_name(["ok", name]) == name
    with pytest.raises(ValueError, match="is not the path of a file inside a folder"):
        write_files(folder, {"ok": b"", name: b""})
    assert not list(folder.iterdir()) and list(tmp_path.iterdir()) == [folder]


def test_an_existing_file_or_link_is_not_overwritten(tmp_path):
    (tmp_path / "a").write_text("mine")
    (tmp_path / "b").symlink_to(tmp_path / "c")
    for name in "ab":
        with pytest.raises(FileExistsError):
            write_files(tmp_path, {name: b""})
    assert (tmp_path / "a").read_text() == "mine" and not (tmp_path / "c").exists()


def test_a_locked_file_makes_others_wait(tmp_path):
    path, order = tmp_path / "lock", []

    def other():
        with locked_file(path):
            order.append("other")

    thread = threading.Thread(target=other)
    with locked_file(path):
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


def test_sync_names_what_is_missing(tmp_path):
    sync(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "missing")


def test_a_directory_that_cannot_be_flushed_is_no_error_and_a_file_is(tmp_path, monkeypatch):
    """Some network file systems can't flush a list of names."""

    def unsupported(handle):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    (tmp_path / "a").write_text("")
    monkeypatch.setattr(os, "fsync", unsupported)
    sync(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        sync(tmp_path / "a")
