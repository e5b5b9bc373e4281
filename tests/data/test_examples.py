"""Examples by index: arrays and sequences give the same batches, and bad ones are refused."""

from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from tfloss.data.examples import MIN_SLICE_BYTES, ArrayExamples, SequenceExamples, as_examples
from tfloss.errors import DataError


class Pair(NamedTuple):
    x: np.ndarray
    y: np.ndarray


ITEMS = [Pair(np.float32([i, -i]), np.int64(10 * i)) for i in range(5)]
ARRAYS = Pair(*(np.stack(values) for values in zip(*ITEMS, strict=True)))


@pytest.mark.parametrize("make", [lambda: ArrayExamples(ARRAYS), lambda: SequenceExamples(ITEMS)])
@pytest.mark.parametrize("traced", [False, True])
def test_a_batch_and_one_example(make, traced):
    examples = make()
    take = tf.function(examples.take) if traced else examples.take
    assert len(examples) == 5 and examples.identity() == {} and examples.decode is None
    batch = take(tf.constant([3, 1], tf.int64))
    assert isinstance(batch, Pair)
    assert batch.x.numpy().tolist() == [[3.0, -3.0], [1.0, -1.0]]
    assert batch.y.numpy().tolist() == [30, 10]
    one = take(tf.constant(2, tf.int64))
    assert one.x.numpy().tolist() == [2.0, -2.0] and int(one.y) == 20


def test_large_examples_are_sliced_to_the_same_values():
    values = np.arange(3 * MIN_SLICE_BYTES, dtype=np.uint8).reshape(3, -1)
    found = ArrayExamples(values).take(tf.constant(1, tf.int64))
    np.testing.assert_array_equal(found, values[1])


def test_static_shapes_are_kept():
    @tf.function(input_signature=[tf.TensorSpec([4], tf.int64)])
    def take(indices):
        batch = SequenceExamples(ITEMS).take(indices)
        assert batch.x.shape == (4, 2) and batch.y.shape == (4,)
        return batch.y

    take(tf.zeros([4], tf.int64))


def test_items_of_different_shapes_are_read_one_by_one():
    class Texts:
        element_spec = {"ids": tf.TensorSpec([None], tf.int64)}

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return {"ids": np.arange(index + 1)}

    examples = SequenceExamples(Texts())
    assert examples.reads_single and not SequenceExamples(ITEMS).reads_single
    assert examples.take(tf.constant(2, tf.int64))["ids"].numpy().tolist() == [0, 1, 2]


def test_several_items_are_read_at_once_if_the_sequence_can():
    calls = []

    class Many(list):
        def __getitems__(self, indices):
            calls.append(indices)
            return [self[i] for i in indices]

    SequenceExamples(Many(ITEMS)).take(tf.constant([4, 0], tf.int64))
    assert calls == [[4, 0]]


def test_bytes_keep_trailing_zeros():
    found = SequenceExamples([b"a\0", b"b\0\0"]).take(tf.constant([1, 0], tf.int64))
    assert found.numpy().tolist() == [b"b\0\0", b"a\0"]


def test_an_item_in_the_middle_is_checked_when_it_is_read():
    examples = SequenceExamples([{"x": 1}, {"y": 2}, {"x": 3}])
    with pytest.raises(tf.errors.OpError, match="Item 1 has another structure than the first"):
        tf.function(examples.take)(tf.constant([1], tf.int64))


def test_examples_are_recognised():
    arrays = ArrayExamples(ARRAYS)
    assert as_examples(arrays) is arrays
    assert isinstance(as_examples({"x": [1, 2]}), ArrayExamples)
    assert isinstance(as_examples(ITEMS), SequenceExamples)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ({"x": np.zeros(3), "y": np.zeros(2)}, r"\['x'\] 3, \['y'\] 2"),
        ({"x": np.float32(1)}, r"\['x'\] none"),
        ({}, "holds no array"),
        (7, "got int"),
        (tf.data.Dataset.range(3), "has no random access. Pass it to the trainer"),
    ],
)
def test_other_examples_are_refused(examples, message):
    with pytest.raises(DataError, match=message):
        as_examples(examples)
