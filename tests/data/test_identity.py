"""Fingerprints of data sets name what a batch holds; differences are listed by path."""

import tensorflow as tf

from tfloss.data.identity import differences, structure


def test_a_structure_has_dtype_and_rank_of_each_tensor():
    spec = {
        "image": tf.TensorSpec([None, 8, 8, 1]),
        "objects": (tf.RaggedTensorSpec([None, None], tf.int64), tf.TensorSpec([], tf.string)),
    }
    assert structure(spec) == {
        "batch['image']": "float32 of rank 4",
        "batch['objects'][0]": "int64 of rank 2",
        "batch['objects'][1]": "string of rank 0",
    }


def test_a_structure_does_not_depend_on_sizes():
    assert structure(tf.TensorSpec([4, 3])) == structure(tf.TensorSpec([None, 5]))


def test_a_structure_holds_what_is_no_tensor():
    assert structure({"x": None}) == {"batch['x']": "None of rank ?"}


def test_differences_are_listed_by_path():
    before = {"batches": 5, "source": {"seed": 1, "shuffle": True}}
    now = {"batches": 5, "source": {"seed": 2, "shuffle": True}}
    assert differences(before, before) == {}
    assert differences(before, now) == {"source/seed": "1 -> 2"}
