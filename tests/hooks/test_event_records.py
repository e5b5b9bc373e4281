"""Records of event files are found, from the end of a file too, whatever is damaged in it."""

import random
import struct
import tracemalloc
from time import perf_counter

import pytest
import tensorflow as tf

from tfloss.hooks import TensorBoard, event_records
from tfloss.hooks.event_file import EventFileWriter
from tfloss.hooks.event_records import event_windows, record_names, split_window
from tfloss.hooks.log_truncation import truncate_after


def _event(step):
    event = tf.compat.v1.Event(step=step, wall_time=5.0)
    event.summary.value.add(tag="a", simple_value=2.0 * step)
    return event


def _write_events(logdir, events):
    file = EventFileWriter(logdir)
    for event in events:
        file.write(event.SerializeToString())
    file.close()
    return file.path


def _write(logdir, steps):
    return _write_events(logdir, map(_event, steps))


def _windows(path):
    with path.open("rb") as file:
        return list(event_windows(file))


def test_records_are_split_with_their_steps(tmp_path):
    data = _write(tmp_path, [10, 20, 30]).read_bytes()
    records = list(split_window(data))
    assert [step for _, step in records] == [0, 10, 20, 30]
    assert b"".join(record for record, _ in records) == data


@pytest.mark.parametrize("lost", [1, 3, 20])
def test_an_incomplete_last_record_is_ignored(tmp_path, lost):
    data = _write(tmp_path, [10, 20]).read_bytes()
    assert [step for _, step in split_window(data[:-lost])] == [0, 10]


def test_zeros_after_a_power_failure_end_the_records(tmp_path):
    data = _write(tmp_path, [10]).read_bytes()
    assert [step for _, step in split_window(data + bytes(100))] == [0, 10]


def test_one_damaged_length_hides_one_record_only(tmp_path):
    """Every byte of every header but the first record's; what follows it is found again."""
    data = _write(tmp_path, [10, 20, 30]).read_bytes()
    records = [record for record, _ in split_window(data)]
    starts = [sum(map(len, records[:i])) for i in range(len(records))]
    for number in (1, 2, 3):
        for byte in range(12):
            damaged = bytearray(data)
            damaged[starts[number] + byte] ^= 0x10
            found = list(split_window(bytes(damaged)))
            steps = [0, 10, 20, 30]
            steps[number] = None
            assert [step for _, step in found] == steps, (number, byte)
            assert b"".join(record for record, _ in found) == damaged


def test_any_damaged_byte_loses_no_byte(tmp_path):
    data = _write(tmp_path, [10, 20]).read_bytes()
    for byte in range(len(data)):
        damaged = bytearray(data)
        damaged[byte] ^= 0xFF
        assert b"".join(record for record, _ in split_window(bytes(damaged))) == damaged


def test_a_record_after_a_damaged_megabyte_is_found(tmp_path):
    file = EventFileWriter(tmp_path)
    event = _event(10)
    event.summary.value.add(tag="image", tensor=tf.make_tensor_proto(b"x" * 3_000_000))
    for one in (event, _event(20)):
        file.write(one.SerializeToString())
    file.close()
    damaged = bytearray(file.path.read_bytes())
    first = 12 + struct.unpack_from("<Q", damaged)[0] + 4
    damaged[first] ^= 1
    assert [step for _, step in split_window(bytes(damaged))] == [0, None, 20]


def test_files_of_other_programs_have_no_windows(tmp_path):
    with tf.summary.create_file_writer(str(tmp_path)).as_default(step=7):
        tf.summary.scalar("a", 1.0)
    (path,) = tmp_path.iterdir()
    begun = _write(tmp_path / "ours", []).read_bytes()[:-1]
    for content in (path.read_bytes(), b"a text about tfevents", b"\n", b"12345678" * 10, begun):
        path.write_bytes(content)
        with path.open("rb") as file:
            assert list(event_windows(file)) == []


def test_windows_begin_where_records_do(tmp_path, monkeypatch):
    """Windows of 100 bytes hold two records of 39 bytes."""
    monkeypatch.setattr(event_records, "WINDOW", 100)
    path = _write(tmp_path, range(1, 6))
    whole = path.read_bytes()
    first = len(whole) - 5 * 39
    assert 0 < first < 100
    places = [first + number * 39 for number in range(5)]
    assert _windows(path) == [places[3], places[1], 0]
    path.write_bytes(whole[:-1])
    assert _windows(path) == [places[3], places[1], 0]
    path.write_bytes(whole + bytes(150))  # no record begins in the last 100 bytes
    assert _windows(path) == [places[4], places[2], places[0], 0]
    damaged = bytearray(whole)
    damaged[places[3]] ^= 1  # the length of the fourth
    path.write_bytes(damaged)
    assert _windows(path) == [places[4], 0]
    monkeypatch.setattr(event_records, "_LARGEST", 1)  # as if the file were longer
    assert _windows(path) == [places[4], places[2], places[0], 0]


def test_a_file_of_another_program_has_no_windows(tmp_path):
    with tf.summary.create_file_writer(str(tmp_path)).as_default(step=7):
        tf.summary.scalar("a", 1.0)
    (path,) = tmp_path.iterdir()
    assert _windows(path) == []
    with path.open("rb") as file:
        assert list(event_windows(file, "tensorflow.core.util.events_writer")) == [0]
    for content in (b"", b"a text about tfevents", b"12345678" * 10):
        path.write_bytes(content)
        assert _windows(path) == []


@pytest.mark.parametrize("seed", range(40))
def test_windows_remove_what_the_whole_file_does(tmp_path, monkeypatch, seed):
    """Of a file whose events hold event files, or which is damaged and cut off."""
    rng = random.Random(seed)
    text = _write(tmp_path / "text", [7, 98, 99]).read_bytes() if seed % 2 else bytes(150)
    events = []
    for step in sorted(rng.choices(range(1, 60), k=40)):
        events.append(_event(step))
        if rng.random() < 0.3:
            events[-1].summary.value.add(tag="text").tensor.string_val.append(
                text * rng.randint(1, 9)
            )
    path = _write_events(tmp_path / "train", events)
    content = bytearray(path.read_bytes())
    if not seed % 2:
        del content[len(content) - rng.randrange(50) :]
        content[rng.randrange(200, len(content))] ^= 0x10
    step, pending = rng.randrange(1, 60), {rng.randrange(1, 20): {"text"}}
    found = []
    for windows in (None, event_windows):
        monkeypatch.setattr(event_records, "WINDOW", rng.choice([100, 1000]))
        path.write_bytes(content)
        truncate_after(path, step, split_window, pending, record_names, windows)
        found.append(path.read_bytes())
    assert found[0] == found[1] != content


@pytest.mark.slow
def test_a_gigabyte_is_cut_within_two_seconds(make_trainer, tmp_path):
    """A run that was killed at step 3,000 and resumes at 2,500. An event has 2 kB."""

    def events(first, last):
        for step in range(first, last + 1):
            event = _event(step)
            event.summary.value.add(tag="b").tensor.tensor_content = bytes(2000)
            yield event

    block = b"".join(
        r for r, _ in split_window(_write_events(tmp_path, events(1, 2000)).read_bytes())
    )
    begin = len(_write(tmp_path, []).read_bytes())
    end = _write_events(tmp_path, events(2001, 3000)).read_bytes()[begin:]
    path = _write(tmp_path / "train", [])
    with path.open("ab") as file:
        for _ in range(250):
            file.write(block[begin:])
        file.write(end)
    size, record = path.stat().st_size, len(end) // 1000
    assert size > 1e9
    tracemalloc.start()
    began = perf_counter()
    make_trainer([TensorBoard()], workdir=tmp_path, step=2500).begin(3000)
    took, peak = perf_counter() - began, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size == size - 500 * record
    assert took < 2 and peak < 50e6
