import numpy as np
import pytest
import tensorflow as tf

from tfloss.hooks.event_protos import ScalarEvents, summary_event
from tfloss.summary import Summary


def _value(summary):
    """What is written of a summary: its one value."""
    event = tf.compat.v1.Event.FromString(summary_event(7, 5.0, summary))
    assert (event.step, event.wall_time) == (7, 5.0)
    (value,) = event.summary.value
    return value


def _of_tf_summary(tmp_path, write):
    """What `write()`, which calls `tf.summary`, writes: its one value."""
    with tf.summary.create_file_writer(str(tmp_path)).as_default(7):
        write()
    tf.summary.flush()
    (path,) = tmp_path.iterdir()
    _, record = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    (value,) = tf.compat.v1.Event.FromString(record).summary.value
    return value


def _assert_same(ours, theirs):
    assert ours.tag == theirs.tag and ours.metadata == theirs.metadata
    ours, theirs = tf.make_ndarray(ours.tensor), tf.make_ndarray(theirs.tensor)
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    if ours.dtype == object:
        assert ours.tolist() == theirs.tolist()
    else:
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_scalars_of_a_step_are_one_event():
    events = ScalarEvents()
    for step, scalars in [(1, {"a": 0.5, "b/c": 2}), (2, {"a": 1.5, "b/c": 3}), (3, {"a": 0.25})]:
        event = tf.compat.v1.Event.FromString(events.serialized(step, 9.0 + step, scalars))
        assert (event.step, event.wall_time) == (step, 9.0 + step)
        assert {value.tag: value.simple_value for value in event.summary.value} == scalars


HISTOGRAMS = {
    "several values": np.linspace(-1.0, 2.0, 1000, dtype=np.float32) ** 3,
    "an edge": np.array([[0.0, 1.0], [1.0, 4.0]]),
    "integers": np.arange(10),
    "one value": np.array([3.0, 3.0, 3.0], np.float32),
    "a scalar": np.float32(2.0),
    "nothing": np.zeros([0], np.float32),
    "NaN": np.array([1.0, np.nan, 2.0], np.float32),
    "infinity": np.array([1.0, np.inf, 2.0], np.float32),
    "negative infinity": np.array([1.0, -np.inf, 2.0], np.float32),
}


@pytest.mark.parametrize("name", HISTOGRAMS)
@pytest.mark.parametrize("buckets", [None, 4, 1, 0])
def test_a_histogram_is_that_of_tf_summary(tmp_path, name, buckets):
    values = HISTOGRAMS[name]
    ours = _value(Summary("h", "histogram", values, {"buckets": buckets}))
    theirs = _of_tf_summary(tmp_path, lambda: tf.summary.histogram("h", values, buckets=buckets))
    _assert_same(ours, theirs)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_images_are_those_of_tf_summary(tmp_path, channels, dtype):
    images = np.random.default_rng(0).normal(0.5, 0.5, [5, 2, 3, channels])  # clipped to 0 and 1
    images = (images * 100).astype(dtype) if dtype == np.uint8 else images.astype(dtype)
    ours = _value(Summary("i", "image", images))
    theirs = _of_tf_summary(tmp_path, lambda: tf.summary.image("i", images, max_outputs=5))
    _assert_same(ours, theirs)


def test_no_images_are_just_a_size(tmp_path):
    images = np.zeros([0, 2, 3, 1], np.float32)
    assert tf.make_ndarray(_value(Summary("i", "image", images)).tensor).tolist() == [b"3", b"2"]


def test_images_of_another_rank_are_named():
    with pytest.raises(ValueError, match=r"Summary 'i' must have images .* has shape \(2, 3\)"):
        summary_event(7, 5.0, Summary("i", "image", np.zeros([2, 3])))


@pytest.mark.parametrize("text", [b"one", "Gr\u00fcn".encode(), np.array([b"a", b"b"], object)])
def test_text_is_that_of_tf_summary(tmp_path, text):
    ours = _value(Summary("t", "text", text))
    _assert_same(ours, _of_tf_summary(tmp_path, lambda: tf.summary.text("t", text)))


@pytest.mark.parametrize("value", [np.arange(3), np.float32(0.5), np.array([b"a"], object)])
def test_a_raw_summary_is_that_of_tf_summary(tmp_path, value):
    plugin = tf.compat.v1.SummaryMetadata.PluginData(plugin_name="mine", content=b"data")
    metadata = tf.compat.v1.SummaryMetadata(display_name="Mine", plugin_data=plugin)
    ours = _value(Summary("r", "raw", value, {"metadata": metadata}))
    theirs = _of_tf_summary(tmp_path, lambda: tf.summary.write("r", value, metadata=metadata))
    _assert_same(ours, theirs)


def test_a_raw_summary_may_have_no_metadata(tmp_path):
    ours = _value(Summary("r", "raw", np.arange(3), {"metadata": None}))
    _assert_same(ours, _of_tf_summary(tmp_path, lambda: tf.summary.write("r", np.arange(3))))


def test_metadata_may_be_of_tensorboards_own_class():
    from tensorboard.plugins.scalar import metadata

    theirs = metadata.create_summary_metadata(display_name="x", description="y")
    ours = _value(Summary("r", "raw", np.float32(1.0), {"metadata": theirs})).metadata
    assert (ours.display_name, ours.plugin_data.plugin_name) == ("x", "scalars")
