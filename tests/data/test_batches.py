"""A batch is any nest of tensors: its leaves are named, opened and cut."""

import collections

import attr
import numpy as np
import tensorflow as tf

from tfloss.data.batches import (
    MicroBatches,
    has_rows,
    named_leaves,
    open_nest,
    rows,
    slice_examples,
    slice_rows,
    split_bounds,
    static_rows,
)

Pair = collections.namedtuple("Pair", "first second")


@attr.s(auto_attribs=True)
class Record:
    image: object
    label: object


class Masked(tf.experimental.ExtensionType):
    values: tf.Tensor
    lengths: tf.RaggedTensor
    limit: int = 3


def test_parts_differ_by_at_most_one_example():
    assert [split_bounds(5, 3, i) for i in range(3)] == [(0, 2), (2, 4), (4, 5)]
    assert [split_bounds(1, 2, i) for i in range(2)] == [(0, 1), (1, 1)]
    traced = [split_bounds(tf.constant(5), 3, tf.constant(i)) for i in range(3)]
    assert [(int(a), int(b)) for a, b in traced] == [(0, 2), (2, 4), (4, 5)]


def test_every_kind_of_tensor_has_rows_that_are_cut():
    dense, text = tf.range(5), tf.constant(list("abcde"))
    ragged = tf.ragged.constant([[1], [], [2, 3], [4], []])
    sparse = tf.sparse.from_dense(np.eye(5))
    for one in (dense, text, ragged, sparse):
        assert has_rows(one) and has_rows(tf.type_spec_from_value(one))
        assert rows(one) == static_rows(one) == 5
    assert slice_rows(text, 3, 5).numpy().tolist() == [b"d", b"e"]
    assert slice_rows(ragged, 3, 5).to_list() == [[4], []]
    np.testing.assert_array_equal(tf.sparse.to_dense(slice_rows(sparse, 3, 5)), np.eye(5)[3:])
    for other in (tf.constant(1.0), None, tf.data.DatasetSpec(tf.TensorSpec([]))):
        assert not has_rows(other)


def test_a_nest_is_cut_where_it_has_rows():
    found = slice_examples({"x": tf.range(3), "t": tf.constant(1.0), "none": None}, 1, 3)
    assert found["x"].numpy().tolist() == [1, 2] and found["t"] == 1.0 and found["none"] is None


def test_rows_are_known_statically_if_they_can_be():
    seen = []

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 2]),
            tf.TensorSpec([4]),
            tf.RaggedTensorSpec([None, None]),
            tf.TensorSpec(None),
        ]
    )
    def trace(unknown, fixed, ragged, rankless):
        assert has_rows(rankless)
        seen.append([static_rows(x) for x in (unknown, fixed, ragged, rankless)])
        return [rows(x) for x in (unknown, fixed, ragged, rankless)]

    ragged = tf.ragged.constant([[1.0], [], [2.0]])
    found = trace(tf.zeros([5, 2]), tf.zeros([4]), ragged, tf.zeros([6]))
    assert [int(x) for x in found] == [5, 4, 3, 6]
    assert seen[0] == [None, 4, None, None]


def test_leaves_are_named_by_their_path():
    batch = {"image": 1, "boxes": [2, (3, None)], "pair": Pair(4, Record(5, {"x": 6}))}
    assert named_leaves(batch, "batch") == [
        ("batch['image']", 1),
        ("batch['boxes'][0]", 2),
        ("batch['boxes'][1][0]", 3),
        ("batch['boxes'][1][1]", None),
        ("batch['pair'].first", 4),
        ("batch['pair'].second.image", 5),
        ("batch['pair'].second.label['x']", 6),
    ]
    assert named_leaves(7) == [("", 7)]
    assert named_leaves(()) == []


def test_a_nest_is_opened_down_to_its_tensors_and_packed_again():
    lengths = tf.ragged.constant([[1.0], [2.0, 3.0]])
    masked = Masked(values=tf.zeros([2]), lengths=lengths)
    batch = (Pair({"b": masked, "a": None}, ()), Record(tf.ones([2]), (masked,)))
    leaves, pack = open_nest(batch, "batch")
    assert [path for path, _ in leaves] == [
        "batch[0].first['a']",
        "batch[0].first['b'].values",
        "batch[0].first['b'].lengths",
        "batch[1].image",
        "batch[1].label[0].values",
        "batch[1].label[0].lengths",
    ]
    first, second = pack([None if x is None else slice_rows(x, 1, 2) for _, x in leaves])
    assert isinstance(first, Pair) and first.second == () and isinstance(second, Record)
    assert first.first["b"].lengths.to_list() == [[2.0, 3.0]] and first.first["b"].limit == 3
    assert second.image.shape == [1] and second.label[0].values.shape == [1]


def test_micro_batches_are_a_list():
    assert MicroBatches([1, 2]) == [1, 2]
