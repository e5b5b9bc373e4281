import re

import pytest
import tensorflow as tf

from tfloss.hooks.event_file import EventFileWriter, split_records


def _event(step):
    event = tf.compat.v1.Event(step=step, wall_time=5.0)
    event.summary.value.add(tag="a", simple_value=2.0 * step)
    return event


def _write(logdir, steps):
    file = EventFileWriter(logdir)
    for step in steps:
        file.write(_event(step).SerializeToString())
    file.close()
    return file.path


def _read(path):
    records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    return [tf.compat.v1.Event.FromString(record) for record in records]


def test_a_file_is_a_version_and_the_events(tmp_path):
    first, *events = _read(_write(tmp_path / "new/train", range(23)))
    assert first.file_version == "brain.Event:2" and first.wall_time > 0 and first.step == 0
    assert events == [_event(step) for step in range(23)]


def test_the_file_begins_as_one_of_tf_summary_does(tmp_path):
    """A file of `tf.summary` has the same name and the same version."""
    tf.summary.create_file_writer(str(tmp_path / "tf")).close()
    (theirs,) = (tmp_path / "tf").iterdir()
    ours = _write(tmp_path / "tfloss", [])
    assert _read(ours)[0].file_version == _read(theirs)[0].file_version
    name = r"(events\.out\.tfevents\.)\d{10}\.(.+)\.(\d+)\.\d+(\.v2)"
    assert re.fullmatch(name, ours.name).groups() == re.fullmatch(name, theirs.name).groups()


def test_each_writer_has_a_file_of_its_own_in_the_order_of_their_names(tmp_path):
    paths = [_write(tmp_path, [number]) for number in range(3)]
    assert sorted(tmp_path.iterdir()) == paths
    assert [_read(path)[1].step for path in paths] == [0, 1, 2]


def test_readers_see_events_after_a_flush(tmp_path):
    file = EventFileWriter(tmp_path)
    file.write(_event(7).SerializeToString())
    file.flush()
    assert _read(file.path)[1:] == [_event(7)]
    file.close()


def test_records_are_split_with_their_steps(tmp_path):
    data = _write(tmp_path, [10, 20, 30]).read_bytes()
    records = list(split_records(data))
    assert [step for _, step in records] == [0, 10, 20, 30]
    assert b"".join(record for record, _ in records) == data


@pytest.mark.parametrize("lost", [1, 3, 20])
def test_an_incomplete_last_record_is_ignored(tmp_path, lost):
    data = _write(tmp_path, [10, 20]).read_bytes()
    assert [step for _, step in split_records(data[:-lost])] == [0, 10]


def test_zeros_after_a_power_failure_end_the_records(tmp_path):
    data = _write(tmp_path, [10]).read_bytes()
    assert [step for _, step in split_records(data + bytes(100))] == [0, 10]
