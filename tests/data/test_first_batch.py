"""Workers whose first batches differ are warned once."""

import warnings

import numpy as np
import pytest
import tensorflow as tf

from tfloss.data.first_batch import FirstBatch


class _Chief:
    """The agreement of a worker whose chief has seen `value`."""

    def __init__(self, value):
        self.value, self.asked = value, 0

    def agree(self, flags, numbers=()):
        self.asked += 1
        return list(flags), [self.value for _ in numbers]


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
    chief = _Chief(first.checksum + 1)

    with pytest.warns(UserWarning, match="different first batches.*input_fn"):
        first.compare(chief)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first.compare(chief)
    assert chief.asked == 2


def test_equal_batches_are_not_reported():
    first, _ = _first(np.arange(6))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first.compare(_Chief(first.checksum))
