"""Inputs and outputs of signatures: their names and forms, and what is refused."""

import collections

import numpy as np
import pytest
import tensorflow as tf

from tests.saved_model.models import IMAGE, Net, Plain, built, images, serve
from tfloss.errors import ExportError
from tfloss.saved_model.export import export

Pair = collections.namedtuple("Pair", ["boxes", "scores"])


@pytest.mark.parametrize(
    ("predictions", "names"),
    [
        (lambda x: x, ["output"]),
        (lambda x: (x, 2 * x), ["output_0", "output_1"]),
        (lambda x: [x], ["output_0"]),
        (lambda x: Pair(x, x), ["boxes", "scores"]),
        (lambda x: {"rpn": {"boxes": x, "masks": [x, x]}, "none": None},
         ["rpn/boxes", "rpn/masks_0", "rpn/masks_1"]),
    ],
)  # fmt: skip
def test_names_of_outputs(tmp_path, predictions, names):
    model = Net(lambda batch, logits: predictions(logits))
    path = export(model, tmp_path / "export", IMAGE)
    assert sorted(serve(path, image=images())) == names


def test_outputs_by_name_and_by_function(tmp_path):
    model = built()
    path = export(model, tmp_path / "a", IMAGE, outputs=["probabilities"])
    assert list(serve(path, image=images())) == ["probabilities"]
    path = export(
        model, tmp_path / "b", IMAGE, outputs=lambda p: {"class": tf.argmax(p["logits"], -1)}
    )
    expected = np.argmax(model({"image": images()})["logits"], -1)
    np.testing.assert_array_equal(serve(path, image=images())["class"], expected)
    with pytest.raises(ExportError, match="no output 'boxes'. Its outputs are logits, prob"):
        export(model, tmp_path / "c", IMAGE, outputs=["boxes"])


def test_an_output_named_like_an_input_is_refused(tmp_path):
    model = Net(lambda batch, logits: {"image": batch["image"], "logits": logits})
    with pytest.raises(ExportError, match="Output 'image' has the name of an input.*outputs=lam"):
        export(model, tmp_path / "export", IMAGE)
    export(model, tmp_path / "export", IMAGE, outputs=["logits"])


def test_other_outputs_that_signatures_cannot_have(tmp_path):
    for predictions, message in [
        (lambda x: {"a": tf.RaggedTensor.from_tensor(x)}, "Output 'a' is a RaggedTensor"),
        (lambda x: {"a": {"b": x}, "a/b": x}, "Two outputs are named 'a/b'"),
        (lambda x: {}, "returned nothing"),
    ]:
        model = Net(lambda batch, logits, make=predictions: make(logits))
        with pytest.raises(ExportError, match=message):
            export(model, tmp_path / "export", IMAGE)


@pytest.mark.parametrize("inputs", [tf.TensorSpec([None, 3]), (tf.TensorSpec([None, 3]),)])
def test_inputs_without_names_for_a_model_that_reads_names(inputs, tmp_path):
    model = built(Net(lambda batch, logits: logits))
    line = r"models.py:\d+.*serving_default.*inputs=\{'image': "
    with pytest.raises(ExportError, match=line):
        export(model, tmp_path / "export", inputs)
    assert not (tmp_path / "export").exists()


def test_a_missing_label_is_named_with_the_line(tmp_path):
    model = built(Net(lambda batch, logits: {"right": tf.argmax(logits, -1) == batch["label"]}))
    message = (
        r"asked for key 'label', which is not among the inputs.*\(image\).*test_signature.py:\d+"
    )
    with pytest.raises(ExportError, match=message):
        export(model, tmp_path / "export", IMAGE)
    own = Plain(lambda batch: {"x": {}["x"]})
    with pytest.raises(KeyError):  # not the batch's fault
        export(own, tmp_path / "export", {"x": tf.TensorSpec([None])})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"image": (None, 8, 8, 1)}, "Input 'image' .* must be a tf.TensorSpec.* got tuple"),
        ({"image": {"x": tf.TensorSpec([None])}}, "must be a tf.TensorSpec.*got dict.*nested"),
        ({"image/x": tf.TensorSpec([None])}, "Input name 'image/x' .* can't be used"),
        ({"self": tf.TensorSpec([None])}, "Input name 'self' .* can't be used"),
        ({"lambda": tf.TensorSpec([None])}, "Input name 'lambda' .* can't be used"),
        ((tf.TensorSpec([], name="a"), tf.TensorSpec([], name="a")), "have the same name"),
        ({}, "are empty"),
    ],
)
def test_inputs_that_are_no_signature(tmp_path, inputs, message):
    with pytest.raises(ExportError, match=message):
        export(Plain(lambda batch: batch), tmp_path / "export", inputs)


def test_input_names_that_collide_with_arguments_of_tensorflow(tmp_path):
    names = ["args", "name", "tensors", "training", "signature", "Image", "inputs", "x_1"]
    model = Plain(lambda batch: {"sum": tf.add_n([batch[name] for name in names])})
    path = export(model, tmp_path / "export", {name: tf.TensorSpec([None]) for name in names})
    got = serve(path, **{name: np.float32([2**i]) for i, name in enumerate(names)})
    assert got["sum"].tolist() == [255]
