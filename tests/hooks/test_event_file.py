import re

import tensorflow as tf

from tfloss.hooks.event_file import EventFileWriter


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
    first, *events = _read(_write(tmp_path / "train", range(23)))
    assert first.source_metadata.writer == "tfloss"
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


def test_a_new_file_is_not_written_through_a_link(tmp_path, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1_760_000_000.0)
    taken = _write(tmp_path, []).name
    victim = tmp_path / "victim"
    for content in ("mine", None):  # a link to a file, and one to nothing
        if content:
            victim.write_text(content)
        (tmp_path / taken).unlink()
        (tmp_path / taken).symlink_to(victim)
        path = _write(tmp_path, [1])
        assert path.name != taken and len(_read(path)) == 2
        assert (victim.read_text() if content else victim.exists()) == (content or False)
        victim.unlink(missing_ok=True)
