"""Workers whose first batches differ are warned once."""

import warnings

import numpy as np
import pytest
import tensorflow as tf

from tfloss.data.first_batch import FirstBatch
from tfloss.errors import WorkerError


class _Other:
    """The agreement of one of two workers; the other one has seen `value`."""

    def __init__(self, value, sizes=None):
        self.value, self.sizes, self.asked = value, sizes, 0

    def gather(self, place, value):
        self.asked += 1
        return [self.value, value]

    def require_equal(self, values, advice, place):
        if self.sizes is not None and list(values.values()) != [self.sizes]:
            raise WorkerError(f"{values}: {advice}")


def _first(elements):
    first = FirstBatch()
    dataset = first.watch(tf.data.Dataset.from_tensor_slices(elements).batch(2))
    found = list(dataset)
    return first, found


def _sum(elements):
    return _first(elements)[0].checksum


@pytest.mark.parametrize(
    "elements",
    [
        np.arange(6, dtype=np.float32),
        {"x": np.arange(6.0), "y": {"label": np.arange(6), "name": np.array(list("abcdef"))}},
        (np.arange(6), (np.arange(6.0), np.arange(6) > 2)),
        {"words": tf.ragged.constant([[1], [2, 3], [], [4], [5], [6]])},
        {"few": tf.sparse.from_dense(np.eye(6, dtype=np.int32))},
    ],
)
def test_watching_does_not_change_the_data_set(elements):
    plain = list(tf.data.Dataset.from_tensor_slices(elements).batch(2))

    first, found = _first(elements)

    assert first.checksum is not None
    tf.nest.assert_same_structure(found, plain, expand_composites=True)
    flat = zip(
        tf.nest.flatten(found, expand_composites=True),
        tf.nest.flatten(plain, expand_composites=True),
        strict=True,
    )
    assert all(np.array_equal(a.numpy(), b.numpy()) for a, b in flat)


def test_only_the_first_batch_counts():
    assert _sum(np.arange(6)) == _sum(np.array([0, 1, 9, 9, 9, 9]))
    assert _sum(np.arange(6)) != _sum(np.array([1, 0, 2, 3, 4, 5]))
    assert _sum(np.array(["a", "b"])) != _sum(np.array(["b", "a"]))


def test_noise_may_differ_if_there_are_labels():
    labels = np.arange(4)

    def batch(noise):
        return {"x": np.full(4, noise), "label": labels}

    assert _sum(batch(0.1)) == _sum(batch(0.2))
    assert _sum({"x": np.full(4, 0.1)}) != _sum({"x": np.full(4, 0.2)})


def test_a_difference_is_reported_once():
    first, _ = _first(np.arange(6))
    other = _Other(first.checksum + 1)

    with pytest.warns(UserWarning, match="different first batches.*input_fn"):
        first.compare(other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first.compare(other)
    assert other.asked == 1


def test_equal_batches_are_not_reported():
    first, _ = _first(np.arange(6))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first.compare(_Other(first.checksum))


def test_other_sizes_are_an_error():
    first, _ = _first(
        {"x": np.zeros([6, 3]), "y": np.zeros(6), "words": tf.ragged.constant([[1]] * 6)}
    )
    with pytest.raises(WorkerError, match=r"first batch': \[2, 2\].*same batch size"):
        first.compare(_Other(first.checksum, [4, 4]))
    first, _ = _first({"x": np.zeros([6, 3]), "y": np.zeros(6)})
    first.compare(_Other(first.checksum, [2, 2]))
