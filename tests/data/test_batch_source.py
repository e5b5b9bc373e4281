"""A batch source's order is a function of seed and position; its batches are read by index."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfloss.data import BatchLayout, BatchSource
from tfloss.errors import DataError


class Batches(keras.utils.PyDataset):
    """Batch i holds i, i + 0.5 and, but for the last one, i + 0.75."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        rows = np.array([0.0, 0.5, 0.75])[: 2 if index == 4 else 3]
        return {"x": index + rows, "name": [f"n{index}"] * len(rows)}


def read(dataset):
    return [int(one["x"][0]) for one in dataset]


def test_it_starts_at_any_batch():
    source = BatchSource(Batches(), seed=2, epochs=3)
    whole = read(source.dataset())
    assert len(whole) == source.cardinality == 15 and source.steps_per_epoch == 5
    assert [sorted(whole[i : i + 5]) for i in (0, 5, 10)] == [[0, 1, 2, 3, 4]] * 3
    assert whole[:5] != whole[5:10] and read(BatchSource(Batches(), seed=3).dataset().take(15)) != (
        whole
    )
    for start in (0, 4, 14, 15, 99):
        assert read(source.dataset(start)) == whole[start:]
    endless = BatchSource(Batches(), seed=2)
    assert read(endless.dataset(13).take(2)) == whole[13:] and len(endless) == 5
    assert read(BatchSource(Batches(), shuffle=False).dataset(10**9 + 1).take(5)) == [1, 2, 3, 4, 0]
    assert read(BatchSource(Batches(workers=3), seed=2).dataset().take(15)) == whole


def test_its_batches_are_those_of_fit():
    source = BatchSource(Batches(), shuffle=False, epochs=1)
    assert source.element_spec["x"] == tf.TensorSpec([None], tf.float32) and source.batch_size == 3
    *_, last = source.dataset()
    assert last["x"].numpy().tolist() == [4.0, 4.5]
    assert last["name"].numpy().tolist() == [b"n4", b"n4"]


def test_a_worker_takes_its_part_of_each_batch():
    source = BatchSource(Batches(), seed=1, epochs=1)
    parts = [list(source.dataset(shard=i, shards=2, layout=BatchLayout())) for i in (0, 1)]
    both = [np.concatenate([a["x"], b["x"]]).tolist() for a, b in zip(*parts, strict=True)]
    assert both == [one["x"].numpy().tolist() for one in source.dataset()]


def test_what_else_it_reads_is_any_sequence_of_batches():
    source = BatchSource([np.float32([[1, 2]]), np.float32([[3, 4], [5, 6]])], shuffle=False)
    assert source.element_spec == tf.TensorSpec([None, 2], tf.float32)
    assert source.identity() == {"batches": 2, "seed": 0, "shuffle": False, "epochs": None}


class Shuffling(Batches):
    def on_epoch_end(self): ...


class Random(Batches):
    def __getitem__(self, index):
        return {"x": np.random.rand(3)}


class Ragged(Batches):
    element_spec = None

    def __getitem__(self, index):
        return np.zeros([2, 9 if index == 3 else 4])


def test_what_makes_a_resumed_run_differ_is_named():
    with pytest.raises(DataError, match="Shuffling changes between epochs, in on_epoch_end"):
        BatchSource(Shuffling())
    assert read(BatchSource(Shuffling(), shuffle=False, epochs=1).dataset()) == [0, 1, 2, 3, 4]
    (found,) = BatchSource(Random()).randomness()
    assert "Random.__getitem__ draws from" in found and "depend on its index alone" in found
    assert BatchSource(Batches()).randomness() == []


def test_a_batch_of_another_shape_is_named():
    with pytest.raises(tf.errors.OpError, match=r"Item 3 is float32 \[2, 9\].*element_spec"):
        list(BatchSource(Ragged(), shuffle=False, epochs=1).dataset())
    ragged = Ragged()
    ragged.element_spec = tf.TensorSpec([2, None], tf.float32)
    shapes = [one.shape[1] for one in BatchSource(ragged, shuffle=False, epochs=1).dataset()]
    assert shapes == [4, 4, 4, 9, 4]


@pytest.mark.parametrize(
    ("data", "says"), [([], "list is empty"), (iter([1]), "doesn't know its number of batches")]
)
def test_what_has_no_batches_is_refused(data, says):
    with pytest.raises(DataError, match=says):
        BatchSource(data)
