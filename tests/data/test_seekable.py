"""What has random access checks its arguments, and is read from a position by the trainer."""

import pytest
import tensorflow as tf

from tfloss.data import BatchSource, Source
from tfloss.data.batch_reader import BatchReader
from tfloss.data.seekable import Seekable, check_shard, checked_integer
from tfloss.errors import DataError


def test_arguments():
    assert checked_integer("n", 3, minimum=3) == 3
    for value in (True, 2.5, "3", 2):
        with pytest.raises(DataError, match="n must be an integer of at least 3"):
            checked_integer("n", value, minimum=3)
    check_shard(1, 2)
    with pytest.raises(DataError, match="shard must be 0 to 1"):
        check_shard(2, 2)


class Numbers(Seekable):
    batch_size, steps_per_epoch, cardinality = 1, 3.0, 3
    element_spec = tf.TensorSpec([1], tf.int64)

    def dataset(self, start=0, *, shard=0, shards=1, layout=None):
        return tf.data.Dataset.range(start, 3).batch(1, drop_remainder=True)

    def identity(self):
        return {}

    def randomness(self):
        return []


def test_any_subclass_is_read_from_a_position():
    assert issubclass(Source, Seekable) and issubclass(BatchSource, Seekable)
    reader = BatchReader(Numbers(), tf.distribute.get_strategy())
    assert reader.seekable and [int(x[0]) for x in reader.open(1)] == [1, 2]
