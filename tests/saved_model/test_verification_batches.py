"""The batches on which an export is compared with its model."""

import numpy as np
import pytest
import tensorflow as tf

from tests.saved_model.models import Plain
from tfloss.errors import ExportError
from tfloss.saved_model.export import export
from tfloss.saved_model.signature import parse
from tfloss.saved_model.verification_batches import batches

X, Y = tf.TensorSpec([None, 2]), tf.TensorSpec([None], tf.int64)


def shapes(inputs, example=None):
    found = batches(parse("serve", inputs), example)
    return [(one.name, [tensor.shape.as_list() for tensor in one.tensors]) for one in found]


def test_generated_batches_have_1_and_3_rows():
    assert shapes({"x": X, "y": Y}) == [
        ("a batch of 1", [[1, 2], [1]]),
        ("a batch of 3", [[3, 2], [3]]),
    ]
    assert shapes({"x": tf.TensorSpec([4, 2])}) == [("a batch of 1", [[4, 2]])]


def test_an_example_is_used_as_it_is_and_cut_where_all_inputs_have_its_rows():
    x, y = np.ones([2, 2]), np.arange(2)
    ragged = tf.ragged.constant([[1], [2, 3]], dtype=tf.int64)
    sparse = tf.sparse.from_dense(np.float32([[0, 1], [2, 0]]))
    inputs = {
        "x": X,
        "t": tf.RaggedTensorSpec([None, None], tf.int64),
        "s": tf.SparseTensorSpec([None, 2]),
    }
    found = list(batches(parse("serve", inputs), {"x": x, "t": ragged, "s": sparse}))
    assert [one.name for one in found] == ["example_inputs", "a batch of 1", "a batch of 3"]
    assert [one.may_fail for one in found] == [False, True, True]
    _, _, values, splits, indices, kept, shape = [
        None,
        None,
        *(t.numpy().tolist() for t in found[2].tensors[1:]),
    ]
    assert (values, splits) == ([1, 2, 3, 1], [0, 1, 3, 4])
    assert (indices, kept, shape) == ([[0, 1], [1, 0], [2, 1]], [1, 2, 1], [3, 2])
    # Rows of different numbers, and none at all, can't be cut.
    assert shapes({"x": X, "y": Y}, {"x": x, "y": np.arange(5)}) == [
        ("example_inputs", [[2, 2], [5]])
    ]
    assert shapes({"y": Y}, {"y": y[:0]}) == [("example_inputs", [[0]])]


def test_rows_that_the_model_refuses_are_left_out(tmp_path):
    pairs = Plain(lambda batch: {"y": tf.reshape(batch["x"], [-1, 2, 2])})  # an even number of rows
    example = {"serving_default": {"x": np.ones([4, 2])}}
    export(pairs, tmp_path / "export", {"x": X}, example_inputs=example)
    serve = tf.saved_model.load(str(tmp_path / "export")).signatures["serving_default"]
    assert serve(x=tf.ones([4, 2]))["y"].shape == [2, 2, 2]


def test_an_export_that_fails_on_other_rows_is_not_written(tmp_path):
    def call(batch):
        size = len(batch["x"]) if tf.executing_eagerly() else 4
        return {"y": tf.reshape(batch["x"], [size, 2, 1])}

    example = {"serving_default": {"x": np.ones([4, 2])}}
    with pytest.raises(ExportError, match=r"fails on a batch of 1, which.*tf.shape\(x\)\[0\]"):
        export(Plain(call), tmp_path / "export", {"x": X}, example_inputs=example)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("inputs", "example", "message"),
    [
        ({"x": X}, {"y": [[1.0, 2.0]]}, "has y, but the inputs are x"),
        ({"x": X}, [[1.0, 2.0]], "must be a mapping of x, got list"),
        ((X, Y), ([[1.0, 2.0]],), "has 1 values, but there are 2 inputs"),
        ({"x": X}, {"x": [[1.0]]}, r"'x' has shape \(1, 1\), but the input has \(None, 2\)"),
        ({"x": X}, {"x": [[1.0], [2.0, 3.0]]}, "'x' is no tensor of float32.*RaggedTensorSpec"),
        ({"x": X}, {"x": [["a", "b"]]}, "'x' is no tensor of float32"),
    ],
)
def test_an_example_that_does_not_fit_is_named(inputs, example, message):
    with pytest.raises(ExportError, match="(?s)" + message):
        list(batches(parse("serve", inputs), example))
