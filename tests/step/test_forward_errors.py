"""An error of a forward pass says what batch it got, and what to change."""

import keras
import pytest
import tensorflow as tf

from tfloss.errors import LossError, ModelError
from tfloss.step.forward_errors import check_call, describe, explained_errors


def notes(error, batch):
    with pytest.raises(type(error)) as e, explained_errors(batch):
        raise error
    assert e.value is error
    return "\n".join(getattr(error, "__notes__", []))


def test_the_batch_is_described():
    batch = {
        "image": tf.zeros([2, 8, 8, 3], tf.uint8),
        "boxes": (tf.ragged.constant([[1.0], []]), tf.sparse.from_dense([[0, 1]]), None),
    }
    assert describe(batch) == (
        "The batch of this forward pass: batch['image']: uint8 (2, 8, 8, 3), batch['boxes'][0]: "
        "ragged float32 (2, None), batch['boxes'][1]: sparse int32 (1, 2), batch['boxes'][2]: None."
    )


def test_a_large_batch_is_cut():
    text = describe([tf.zeros([2])] * 20)
    assert text.count("float32") == 8 and text.endswith("and 12 more.")


def test_a_missing_name_is_told_with_those_there_are():
    found = notes(KeyError("label"), {"x": tf.zeros([2]), "y": tf.zeros([2])})
    assert "The batch has no 'label'. It has: 'x', 'y'." in found


@pytest.mark.parametrize("batch", [tf.ones([2]), (tf.ones([2]), tf.ones([2]))])
def test_a_batch_without_names_that_is_read_by_name(batch):
    with pytest.raises(TypeError) as e, explained_errors(batch):
        batch["x"]
    assert "the model reads it by name. Name its parts in the data set" in e.value.__notes__[0]


def test_a_key_error_about_something_else_is_not_explained_by_the_batch():
    assert "has no" not in notes(KeyError("x"), {"x": tf.zeros([2])})


def test_the_innermost_note_counts():
    error = ValueError("bad")
    with pytest.raises(ValueError), explained_errors(tf.zeros([3])), explained_errors({}):
        raise error
    assert len(error.__notes__) == 1


def test_errors_of_tfloss_explain_themselves():
    assert notes(LossError("no loss"), {}) == ""


def test_a_model_of_two_inputs_is_refused_with_its_line():
    class Two(keras.Model):
        def call(self, image, label, training=False):
            return image

    with pytest.raises(ModelError, match=r"Two.call\(image, label\)") as e:
        check_call(Two())
    line = Two.call.__code__.co_firstlineno
    assert f"{__file__}:{line}" in str(e.value)


@pytest.mark.parametrize("arguments", ["batch", "batch, training", "batch, mask=None, **kwargs"])
def test_models_of_one_input_are_accepted(arguments):
    scope = {}
    exec(f"def call(self, {arguments}): return batch", scope)  # noqa: S102
    check_call(type("Model", (keras.Model,), {"call": scope["call"]})())
    check_call(keras.Sequential([keras.Input([2]), keras.layers.Dense(1)]))
