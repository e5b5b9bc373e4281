"""All items have the structure of the first one; what differs is named, or left open."""

import numpy as np
import pytest
import tensorflow as tf

from tfloss.data.item_structure import ItemStructure, map_leaves, named_arrays
from tfloss.errors import DataError


def test_dimensions_that_differ_are_open():
    items = [{"x": np.zeros([2, 3]), "y": "a"}, {"x": np.zeros([2, 4]), "y": "b"}]
    one = ItemStructure.of(items)
    assert one.spec == {"x": tf.TensorSpec([2, None], tf.float64), "y": tf.TensorSpec([], "string")}
    assert not one.is_static and ItemStructure.of(items[:1]).is_static
    assert ItemStructure.of(items[:1], open_rows=True).specs[0].shape.as_list() == [None, 3]
    assert [x.shape for x in one.arrays("It", items[1])] == [(2, 4), ()]
    assert one.packed([1, 2]) == {"x": 1, "y": 2}


@pytest.mark.parametrize("open_rows", [True, False])
def test_numpy_values_are_checked_without_their_paths(monkeypatch, open_rows):
    """Regression: for each example of a loader, paths and shapes took longer than to read it."""
    item = {"b": (np.zeros([2, 3], np.float32), np.int64(4)), "a": np.ones([2], bool), "s": b"x\0"}
    one = ItemStructure.of([item], open_rows=open_rows)
    right = [item["b"][0].tolist(), 4, [True, True], b"x\0"]
    other = {**item, "a": np.ones([5 if open_rows else 2], bool)}
    monkeypatch.setattr("tfloss.data.item_structure.batches.named_leaves", None)
    found = one.arrays("It", item)
    assert [x.tolist() for x in found] == right and all(type(x) is np.ndarray for x in found)
    assert [x.dtype for x in found] == [np.float32, np.int64, bool, object]
    assert one.arrays("It", other)[2].tolist() == other["a"].tolist()
    for unusual in (
        {**item, "a": [True, True]},
        {**item, "a": np.ones([2, 1], bool)},
        {**item, "a": np.ones([2], int)},
        {**item, "c": 1},
        {**item, "s": np.array(b"x")},
        {"a": item["a"], "b": item["b"], "s": item["s"]},
        {**item, "b": item["b"][:1]},
        item["b"],
    ):
        with pytest.raises(TypeError, match="NoneType"):  # it takes the path that names the fault
            one.arrays("It", unusual)


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ({"x": np.zeros(3, np.float32)}, r"Batch 1\['x'\] is float32 \[3\].* float64 .*: pad it"),
        ({"x": np.zeros(4)}, r"\['x'\] is float64 \[4\], but should be float64 \(3,\)"),
        ({"z": np.zeros(3)}, r"Batch 1 has another structure.*it has \['z'\]"),
    ],
)
def test_an_item_that_differs_is_named(item, says):
    with pytest.raises(DataError, match=says):
        ItemStructure.of([{"x": np.zeros(3)}], cure="pad it").arrays("Batch 1", item)


def test_a_list_is_a_leaf():
    nest = {"a": [1, 2], "b": (3, [4])}
    assert named_arrays(nest) == [("['a']", [1, 2]), ("['b'][0]", 3), ("['b'][1]", [4])]
    assert map_leaves(nest, str) == {"a": "[1, 2]", "b": ("3", "[4]")}
