"""A file that grows by whole records."""

import os
import resource

import pytest

from tfloss.hooks.appended_file import AppendedFile


def test_records_are_readable_at_once_and_the_file_is_continued(tmp_path):
    path = tmp_path / "log"
    file = AppendedFile(path)
    assert not path.exists()
    file.append(b"one\n")
    assert path.read_bytes() == b"one\n"
    file.close()
    file.append(b"two\n")
    file.sync()
    assert path.read_bytes() == b"one\ntwo\n"
    file.close()
    file.close()


def test_a_record_that_does_not_fit_leaves_nothing(tmp_path):
    file = AppendedFile(tmp_path / "log")
    file.append(b"12345\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))  # a part of the record fits
    try:
        with pytest.raises(OSError, match=r"File too large: '.*/log'"):
            file.append(b"67890\n")
        assert (tmp_path / "log").read_bytes() == b"12345\n"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    file.append(b"67890\n")
    assert (tmp_path / "log").read_bytes() == b"12345\n67890\n"


def test_a_file_that_was_deleted_is_created_again(tmp_path):
    file = AppendedFile(tmp_path / "log")
    file.append(b"1")
    (tmp_path / "log").unlink()
    file.append(b"2")
    assert (tmp_path / "log").read_bytes() == b"2"


def test_a_directory_that_is_gone_is_not_created(tmp_path):
    """It may be a workdir that was moved."""
    with pytest.raises(FileNotFoundError):
        AppendedFile(tmp_path / "gone" / "log").append(b"1")


def test_a_fifo_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "log")
    with pytest.raises(OSError, match="not a regular file"):
        AppendedFile(tmp_path / "log").append(b"1")
