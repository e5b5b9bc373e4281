"""What is known of the data before training."""

import numpy as np
import pytest
import tensorflow as tf

from tfloss.data.batch_reader import BatchReader
from tfloss.data.source import Source
from tfloss.errors import DataError

ONE = tf.distribute.get_strategy()


def arrays(count=12):
    return {"x": np.zeros([count, 3], np.float32), "y": np.zeros([count], np.int64)}


def test_a_finite_data_set():
    data = tf.data.Dataset.from_tensor_slices(arrays()).batch(4, drop_remainder=True)
    reader = BatchReader(data, ONE)
    assert (reader.batch_size, reader.batches_per_epoch) == (4, 3.0)
    assert not reader.endless and not reader.seekable and reader.shared
    assert reader.batch_bytes() == 4 * 3 * 4 + 4 * 8
    assert len(list(reader.open())) == 3


def test_an_endless_data_set_and_a_source(replicas):
    data = tf.data.Dataset.from_tensor_slices(arrays()).batch(4, drop_remainder=True).repeat()
    reader = BatchReader(data, replicas(2))
    assert reader.endless and reader.batches_per_epoch is None
    assert reader.element_spec["x"].shape.as_list() == [None, 3]
    source = Source(arrays(), batch_size=5)
    reader = BatchReader(source, ONE)
    assert (reader.batch_size, reader.batches_per_epoch) == (5, 12 / 5)
    assert reader.seekable
    assert reader.identity() == {"source": source.identity()}


def test_a_source_opens_at_any_batch():
    source = Source(np.arange(12), batch_size=3, shuffle=False)
    reader = BatchReader(source, ONE)
    assert np.asarray(next(reader.open(2))).tolist() == [6, 7, 8]


def test_an_empty_data_set_is_refused():
    with pytest.raises(DataError, match="it has no batch at all"):
        BatchReader(tf.data.Dataset.from_tensor_slices(arrays(0)).batch(4), ONE)


def test_what_differs_between_two_structures_is_named():
    one = BatchReader(tf.data.Dataset.from_tensor_slices(arrays()).batch(4), ONE)
    other = tf.data.Dataset.from_tensor_slices({"x": np.zeros([4], np.float64)}).batch(2)
    with pytest.raises(DataError) as error:
        BatchReader(other, ONE).check_same_structure(one)
    text = str(error.value)
    assert "batch['x']: float32 of rank 2 -> float64 of rank 1" in text
    assert "batch['y']: int64 of rank 1 -> absent" in text
    one.check_same_structure(one)
