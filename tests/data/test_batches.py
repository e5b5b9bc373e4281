import numpy as np
import pytest
import tensorflow as tf

from tfloss.data.batches import bounds, count, part, split
from tfloss.errors import DataError


def test_bounds_are_equal_but_for_one():
    assert [bounds(5, 3, i) for i in range(3)] == [(0, 2), (2, 4), (4, 5)]
    assert [bounds(1, 2, i) for i in range(2)] == [(0, 1), (1, 1)]
    traced = [bounds(tf.constant(5), 3, tf.constant(i)) for i in range(3)]
    assert [(int(a), int(b)) for a, b in traced] == [(0, 2), (2, 4), (4, 5)]


def test_every_kind_of_tensor_is_counted_and_cut():
    batch = {
        "dense": tf.range(5),
        "text": tf.constant(list("abcde")),
        "ragged": tf.ragged.constant([[1], [], [2, 3], [4], []]),
        "sparse": tf.sparse.from_dense(np.eye(5)),
        "temperature": tf.constant(0.5),
    }
    assert count(batch) == 5
    first, second = split(batch, 2)
    assert first["dense"].numpy().tolist() == [0, 1, 2]
    assert second["text"].numpy().tolist() == [b"d", b"e"]
    assert second["ragged"].to_list() == [[4], []]
    np.testing.assert_array_equal(tf.sparse.to_dense(second["sparse"]), np.eye(5)[3:])
    assert first["temperature"] == second["temperature"] == 0.5


def test_traced_numbers_are_static_where_they_can_be():
    seen = []

    @tf.function(input_signature=[tf.TensorSpec([None, 2]), tf.TensorSpec([4])])
    def trace(open_, fixed):
        seen.append((count((open_, fixed)), count(fixed), count(open_), part(open_, 0, 1)))
        return count(open_)

    assert int(trace(tf.zeros([4, 2]), tf.zeros([4]))) == 4
    both, fixed, open_, _ = seen[0]
    assert both == fixed == 4 and isinstance(open_, tf.Tensor)


def test_few_examples_are_not_split_and_scalars_have_no_number():
    assert len(split({"x": tf.range(2)}, 3)) == 1
    assert count({"t": tf.constant(1.0)}) is None
    with pytest.raises(DataError, match="only scalars"):
        split(tf.constant(1.0), 2)


def test_disagreeing_tensors_are_refused():
    with pytest.raises(DataError, match="first dimensions of its tensors are 2, 3"):
        count((tf.zeros([2]), tf.zeros([3, 1])))
