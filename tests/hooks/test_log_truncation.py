import os
import signal

import pytest

from tfloss.common.replacement import replacement
from tfloss.hooks.log_truncation import LogTruncation, truncate_after
from tfloss.hooks.metrics_file import line_windows


def _split(content):
    """Records are lines; the step is their number."""
    for line in content.splitlines(keepends=True):
        if line.endswith(b"\n"):
            yield line, int(line)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"1\n2\n3\n")
    return path


@pytest.mark.parametrize(("step", "kept"), [(1, b"1\n"), (2, b"1\n2\n"), (3, b"1\n2\n3\n")])
def test_records_of_later_steps_are_removed(path, step, kept):
    truncate_after(path, step, _split)
    assert path.read_bytes() == kept
    assert [*path.parent.iterdir()] == [path]


def test_an_incomplete_last_record_is_removed(path):
    path.write_bytes(b"1\n2")
    truncate_after(path, 2, _split)
    assert path.read_bytes() == b"1\n"


def test_a_file_without_later_records_is_not_rewritten(path):
    before = path.stat()
    truncate_after(path, 3, _split)
    assert path.stat().st_ino == before.st_ino


def test_a_missing_file_stays_missing(tmp_path):
    truncate_after(tmp_path / "log", 3, _split)
    assert not [*tmp_path.iterdir()]


def test_a_run_from_step_0_renames_the_old_log(tmp_path):
    path = tmp_path / "events.out.tfevents.1"
    for content in (b"1\n", b"2\n"):
        path.write_bytes(content)
        truncate_after(path, 0, _split)
    old = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    assert old == {  # names that TensorBoard doesn't read
        "superseded.events.out.events.1": b"1\n",
        "superseded.1.events.out.events.1": b"2\n",
    }


def test_a_copy_is_kept_of_what_had_later_records(path):
    truncate_after(path, 3, _split, keep=True)
    assert [*path.parent.iterdir()] == [path]
    truncate_after(path, 1, _split, keep=True)
    assert path.read_bytes() == b"1\n"
    assert path.with_name("superseded.log").read_bytes() == b"1\n2\n3\n"


def test_a_log_without_steps_stays_at_step_0(path):
    path.write_bytes(b"0\n0\n")
    truncate_after(path, 0, _split)
    assert path.read_bytes() == b"0\n0\n"


def test_a_run_that_continues_the_last_one_reads_nothing(path, tmp_path):
    read = []

    def split(content):
        read.append(content)
        return _split(content)

    truncation = LogTruncation(split)
    truncation.start(path, [path], 2)
    truncation.finish(3)
    assert len(read) == 1
    truncation.start(path, [path], 3)
    assert len(read) == 1
    truncation.start(path, [path], 2)  # a checkpoint of an earlier step was restored
    assert len(read) == 2


def test_a_run_reads_again_after_a_failure(path):
    def fail(content):
        raise OSError

    truncation = LogTruncation(fail)
    with pytest.raises(OSError):
        truncation.start(path, [path], 2)
    truncation.finish(2)
    with pytest.raises(OSError):
        truncation.start(path, [path], 2)


def test_a_record_that_is_logged_again_is_removed(path):
    """Step 2 has a record of `a`, which is pending, and one of `b`, which is not."""
    path.write_bytes(b"1a\n2a\n2b\n3a\n")

    def split(content):
        for line in content.splitlines(keepends=True):
            yield line, int(line[:1])

    def names(record):
        return [record[1:2].decode()]

    truncate_after(path, 2, split, {2: {"a", "c"}}, names)
    assert path.read_bytes() == b"1a\n2b\n"


def test_what_has_no_step_stays(path):
    """Bytes that the writer didn't write, or that can't be read, are never removed."""
    path.write_bytes(b"1\n?\n3\n?\n")

    def split(content):
        for line in content.splitlines(keepends=True):
            yield line, None if line == b"?\n" else int(line)

    truncate_after(path, 2, split)
    assert path.read_bytes() == b"1\n?\n?\n"
    truncate_after(path, 2, lambda content: [(content, None)])
    truncate_after(path, 0, lambda content: [(content, None)])
    assert path.read_bytes() == b"1\n?\n?\n"


def test_a_record_that_is_logged_again_is_found_behind_a_window_without_one(path):
    """Step 2 of `a` is pending; step 2 of `b` and `c`, a window each, are not."""
    path.write_bytes(b"1a\n2a\n2b\n2c\n")

    def split(content):
        for line in content.splitlines(keepends=True):
            yield line, int(line[:1])

    def names(record):
        return [record[1:2].decode()]

    truncate_after(path, 2, split, {2: {"a"}}, names, lambda file: [9, 6, 3, 0])
    assert path.read_bytes() == b"1a\n2b\n2c\n"


def test_what_is_left_out_before_the_last_window_stays(path):
    """Only at the end of the file it was cut off by a kill."""
    path.write_bytes(b"1\n?3\n?")
    truncate_after(path, 2, _split_before_mark, windows=lambda file: [3, 0])
    assert path.read_bytes() == b"1\n?"


def _split_before_mark(content):
    """Lines up to a question mark."""
    return _split(content.partition(b"?")[0])


def test_the_mode_of_a_file_stays_when_it_is_replaced(path, monkeypatch):
    """It is copied in pieces of a byte."""
    monkeypatch.setattr("tfloss.hooks.log_truncation._COPIED", 1)
    path.write_bytes(b"1\n3\n2\n")
    path.chmod(0o640)
    truncate_after(path, 2, _split, windows=lambda file: [2, 0])
    assert path.read_bytes() == b"1\n2\n" and path.stat().st_mode & 0o777 == 0o640


def test_what_a_killed_process_left_beside_the_log_is_removed(path):
    pid = os.fork()
    if not pid:
        with replacement(path) as new:
            new.path.write_text("x")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert len([*path.parent.iterdir()]) == 2
    LogTruncation(_split).start(path, [path], 3)
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize("steps", [range(1, 31), [*range(1, 25), 2, *range(25, 29), 3, 29, 30]])
def test_only_the_end_of_a_long_log_is_read(path, monkeypatch, steps):
    """Windows of 1 kB and 310 bytes for each step. The second log has earlier steps at its end."""
    monkeypatch.setattr("tfloss.hooks.metrics_file.WINDOW", 1000)
    path.write_bytes(b"".join(b"%030d\n" % step * 10 for step in steps))
    before, read = path.stat(), []

    def split(content):
        read.append(len(content))
        return _split(content)

    truncate_after(path, 23, split, windows=line_windows)
    kept = [int(line) for line in path.read_bytes().split()[::10]]
    assert kept == [step for step in steps if step <= 23]
    assert sum(read) <= before.st_size / 2
    # It is cut where it is, and copied only where something stays behind what goes.
    assert (path.stat().st_ino == before.st_ino) == (len(kept) == 23)
