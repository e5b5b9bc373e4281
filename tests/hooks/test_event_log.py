import numpy as np
import tensorflow as tf

from tfloss.hooks.event_log import EventLog
from tfloss.summary import Summary


def _steps(directory):
    return [
        [tf.compat.v1.Event.FromString(x).step for x in tf.data.TFRecordDataset(str(path))
         .as_numpy_iterator()][1:]
        for path in sorted(directory.iterdir())
    ]  # fmt: skip


def test_events_stay_in_memory_until_they_are_written(tmp_path):
    log = EventLog(tmp_path / "val")
    log.add_scalars(1, 0.0, {"a": 1.0})
    log.add_scalars(2, 0.0, {"a": 1.0})
    assert len(log) == 2 and not log.directory.exists()
    log.write()
    assert len(log) == 0 and _steps(log.directory) == [[1, 2]]
    log.write()
    log.close()
    log.add_scalars(3, 0.0, {"a": 1.0})
    log.write()
    log.close()
    assert _steps(log.directory) == [[1, 2], [3]]


def test_later_events_are_cut_from_each_file_unless_the_run_goes_on(tmp_path):
    for steps in ((1, 2), (3, 4)):
        log = EventLog(tmp_path / "val")
        for step in steps:
            log.add_scalars(step, 0.0, {"a": 1.0})
        log.write()
        log.close()
    log.truncate(3)
    assert _steps(tmp_path / "val") == [[1, 2], [3]]
    EventLog(tmp_path / "val").truncate(1)
    assert _steps(tmp_path / "val") == [[1], []]


def test_counted_histograms_become_events_when_they_are_written(tmp_path):
    """In the order of the logs, and without work in between."""
    log = EventLog(tmp_path / "val")
    table = np.array([[0.0, 1.0, 3.0], [1.0, 2.0, 4.0]])
    log.add_scalars(1, 0.0, {"a": 1.0})
    log.add_summary(2, 0.0, Summary("h", "histogram", table, {"counted": True}))
    log.add_scalars(3, 0.0, {"a": 1.0})
    assert log.bytes == 0 and len(log) == 3
    log.write()
    log.close()
    assert _steps(log.directory) == [[1, 2, 3]]
    (path,) = log.directory.iterdir()
    records = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    (value,) = tf.compat.v1.Event.FromString(records[2]).summary.value
    assert value.tag == "h" and tf.make_ndarray(value.tensor).tolist() == table.tolist()
