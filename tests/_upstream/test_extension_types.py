"""The tensors inside an extension type are found, one level down."""

import tensorflow as tf

from tfloss import _upstream


class Boxes(tf.experimental.ExtensionType):
    corners: tf.Tensor
    names: tf.RaggedTensor
    sizes: tuple[tf.Tensor, tf.Tensor]
    limit: int = 7


def test_an_extension_type_is_opened_and_packed():
    names = tf.ragged.constant([[1.0], [2.0, 3.0]])
    boxes = Boxes(corners=tf.zeros([2, 4]), names=names, sizes=(tf.ones([2]), tf.zeros([2])))
    fields, pack = _upstream.open_extension_type(boxes)
    assert [name for name, _ in fields] == ["corners", "names", "sizes[0]", "sizes[1]"]
    packed = pack([value[1:] for _, value in fields])
    assert isinstance(packed, Boxes) and packed.limit == 7
    assert packed.corners.shape == [1, 4] and packed.names.to_list() == [[2.0, 3.0]]
    assert packed.sizes[0].numpy().tolist() == [1.0]


def test_its_spec_is_opened_too():
    spec = Boxes.Spec(
        corners=tf.TensorSpec([2, 4]),
        names=tf.RaggedTensorSpec([2, None]),
        sizes=(tf.TensorSpec([2]), tf.TensorSpec([2])),
        limit=7,
    )
    fields, _ = _upstream.open_extension_type(spec)
    assert dict(fields)["names"] == tf.RaggedTensorSpec([2, None]) and len(fields) == 4


def test_other_values_are_none():
    for other in (tf.zeros([2]), tf.TensorSpec([2]), tf.ragged.constant([[1]]), None):
        assert _upstream.open_extension_type(other) is None
