import numpy as np
import pytest
import tensorflow as tf

from tfloss.common.logger import ChiefLogger
from tfloss.data.distributed import check_tpu_spec
from tfloss.data.feed import Feed
from tfloss.errors import DataError


def parts(data, count, replicas):
    """What each replica gets, batch by batch."""
    strategy = replicas(count)
    feed = Feed(data, strategy)
    local = strategy.experimental_local_results
    found = []
    while True:
        try:
            found.append([one["x"].numpy().tolist() for one in local(next(feed.input.iterator))])
        except (StopIteration, tf.errors.OutOfRangeError):
            return found


@pytest.mark.parametrize("count", [2, 3])
def test_every_batch_is_cut_in_order_and_nothing_is_lost(count, replicas):
    data = tf.data.Dataset.from_tensor_slices({"x": np.arange(11)}).batch(5)
    found = parts(data, count, replicas)
    assert [[x for part in batch for x in part] for batch in found] == [
        [0, 1, 2, 3, 4],
        [5, 6, 7, 8, 9],
        [10],
    ]
    for batch in found:
        sizes = [len(part) for part in batch]
        assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)


def test_batches_made_in_other_ways_are_cut_too(replicas):
    """TensorFlow's own way looks for a `batch` op, and there is none here."""
    data = tf.data.Dataset.from_tensors({"x": np.arange(4)}).repeat(2)
    assert parts(data, 2, replicas) == [[[0, 1], [2, 3]]] * 2


def test_static_shapes_stay_static_where_a_batch_divides(replicas):
    data = tf.data.Dataset.from_tensor_slices({"x": np.zeros([8, 3])})
    strategy = replicas(2)
    for batch, drop, wanted in [(4, True, 2), (4, False, None), (3, True, None)]:
        feed = Feed(data.batch(batch, drop_remainder=drop), strategy)
        local = strategy.experimental_local_results
        spec = feed.input.iterator.element_spec["x"]._value_specs[0]
        assert spec.shape.as_list() == [wanted, 3]
        assert local(next(feed.input.iterator))[0]["x"].shape[1] == 3


def test_scalars_go_to_every_replica(replicas):
    data = tf.data.Dataset.from_tensors({"x": tf.range(4), "t": tf.constant(0.5)})
    strategy = replicas(2)
    batch = next(Feed(data, strategy).input.iterator)
    assert [float(x["t"]) for x in strategy.experimental_local_results(batch)] == [0.5, 0.5]


def test_what_a_tpu_can_not_be_given_is_named():
    ragged = tf.ragged.constant([[1], [2, 3]])
    data = tf.data.Dataset.from_tensor_slices(
        {"image": np.zeros([8, 3]), "name": ["a"] * 8, "boxes": tf.tile(ragged, [4, 1])}
    )
    with pytest.raises(DataError) as error:
        check_tpu_spec(data.batch(4).element_spec)
    message = str(error.value)
    assert "batch['image'] has shape (None, 3)" in message
    assert "batch['name'] holds strings" in message and "drop_remainder=True" in message
    assert "batch['boxes'] is a RaggedTensor" in message
    check_tpu_spec(tf.TensorSpec([4, 3]))


def test_a_snapshot_that_is_being_written_is_not_saved_but_read_again(tmp_path, capfd):
    """5 batches are a pass. A checkpoint is saved after 3, and both runs read 12 in all."""

    def feed():
        numbers = tf.data.Dataset.range(10).map(lambda x: {"x": x})
        return Feed(numbers.snapshot(str(tmp_path)).batch(2).repeat(), tf.distribute.get_strategy())

    def read(feed, count):
        found = [next(feed.input.iterator)["x"].numpy()[0] for _ in range(count)]
        feed.trained(count)
        return found

    first, again = feed(), feed()
    first.warn()
    assert "the data use snapshot(). TensorFlow can't save its position" in capfd.readouterr().err
    assert read(first, 3) == [0, 2, 4]
    state, files = first.state()
    assert not files
    assert read(first, 9) == [6, 8, 0, 2, 4, 6, 8, 0, 2]
    again.resume(state, files, ChiefLogger())
    assert "reading past 3 batches" in capfd.readouterr().err
    assert read(again, 9) == [6, 8, 0, 2, 4, 6, 8, 0, 2]
