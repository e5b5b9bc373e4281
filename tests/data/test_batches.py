"""A batch is any nest of tensors: its examples are counted, cut and named."""

import numpy as np
import pytest
import tensorflow as tf

from tfloss.data.batches import (
    MicroBatches,
    count,
    named_leaves,
    slice_examples,
    split,
    split_bounds,
    with_static_count,
)
from tfloss.errors import DataError


def test_parts_differ_by_at_most_one_example():
    assert [split_bounds(5, 3, i) for i in range(3)] == [(0, 2), (2, 4), (4, 5)]
    assert [split_bounds(1, 2, i) for i in range(2)] == [(0, 1), (1, 1)]
    traced = [split_bounds(tf.constant(5), 3, tf.constant(i)) for i in range(3)]
    assert [(int(a), int(b)) for a, b in traced] == [(0, 2), (2, 4), (4, 5)]


def test_every_kind_of_tensor_is_counted_and_split():
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


def test_traced_counts_are_static_if_they_can_be():
    seen = []

    @tf.function(input_signature=[tf.TensorSpec([None, 2]), tf.TensorSpec([4])])
    def trace(open_, fixed):
        seen.append(
            (count((open_, fixed)), count(fixed), count(open_), slice_examples(open_, 0, 1))
        )
        return count(open_)

    assert int(trace(tf.zeros([4, 2]), tf.zeros([4]))) == 4
    both, fixed, open_, _ = seen[0]
    assert both == fixed == 4 and isinstance(open_, tf.Tensor)


def test_few_examples_are_not_split_and_scalars_have_no_count():
    assert len(split({"x": tf.range(2)}, 3)) == 1
    assert count({"t": tf.constant(1.0)}) is None
    with pytest.raises(DataError, match="only scalars"):
        split(tf.constant(1.0), 2)


def test_tensors_with_different_first_dimensions_are_refused():
    with pytest.raises(DataError, match="first dimensions of its tensors are 2, 3"):
        count((tf.zeros([2]), tf.zeros([3, 1])))


def test_a_static_count_is_set_on_dense_tensors_only():
    seen = []

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 2]),
            tf.RaggedTensorSpec([None, None]),
            tf.TensorSpec([]),
        ]
    )
    def trace(dense, ragged, scalar):
        seen.append(with_static_count((dense, ragged, scalar), 2))
        return tf.shape(seen[0][0])[0]

    trace(tf.zeros([2, 2]), tf.ragged.constant([[1.0], []]), tf.constant(1.0))
    dense, ragged, scalar = seen[0]
    assert dense.shape == (2, 2)
    assert ragged.shape[0] is None and scalar.shape == ()


def test_leaves_are_named_by_their_path():
    batch = {"image": 1, "boxes": [2, (3, None)]}
    assert named_leaves(batch, "batch") == [
        ("batch['image']", 1),
        ("batch['boxes'][0]", 2),
        ("batch['boxes'][1][0]", 3),
        ("batch['boxes'][1][1]", None),
    ]
    assert named_leaves(7) == [("", 7)]


def test_micro_batches_are_a_list():
    assert MicroBatches([1, 2]) == [1, 2]
