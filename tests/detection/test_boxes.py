"""Hand-computed areas, IoUs and encodings of boxes."""

import numpy as np
import tensorflow as tf

from tfloss.detection.boxes import BOX_HEAD_WEIGHTS, area, clip, decode, encode, intersection, iou

UNIT = [[0.0, 0.0, 2.0, 4.0], [1.0, 2.0, 3.0, 6.0], [0.0, 0.0, 0.0, 0.0], [5.0, 5.0, 4.0, 4.0]]


def test_area_of_padding_and_of_an_inverted_box_is_0():
    np.testing.assert_array_equal(area(UNIT), [8, 8, 0, 0])


def test_intersection_and_iou_match_hand_computed_values():
    np.testing.assert_array_equal(intersection(UNIT[:2], UNIT[:3]), [[8, 2, 0], [2, 8, 0]])
    # 2 shared of 8 + 8 - 2 = 14.
    np.testing.assert_allclose(iou(UNIT[:2], UNIT[:3]), [[1, 1 / 7, 0], [1 / 7, 1, 0]], rtol=1e-6)


def test_iou_of_padding_with_padding_is_0():
    np.testing.assert_array_equal(iou(UNIT[2:3], UNIT[2:3]), [[0]])


def test_iou_is_computed_within_each_image_of_a_batch():
    first = tf.constant([[UNIT[0]], [UNIT[1]]])
    np.testing.assert_array_equal(iou(first, first), [[[1]], [[1]]])
    assert iou(tf.zeros([2, 5, 4]), tf.zeros([2, 3, 4])).shape == (2, 5, 3)


def test_encode_matches_hand_computed_offsets():
    anchor = [10.0, 10.0, 20.0, 30.0]  # centre (15, 20), 10 x 20
    box = [12.0, 10.0, 32.0, 20.0]  # centre (22, 15), 20 x 10
    expected = [0.7, -0.25, np.log(2), -np.log(2)]
    np.testing.assert_allclose(encode(box, anchor), expected, rtol=1e-6)
    weighted = np.multiply(expected, [10, 10, 5, 5])
    np.testing.assert_allclose(encode(box, anchor, BOX_HEAD_WEIGHTS), weighted, rtol=1e-6)


def test_decode_is_the_inverse_of_encode():
    random = np.random.RandomState(0)
    corner, size = random.rand(2, 50, 2) * 20, random.rand(2, 50, 2) * 30 + 1
    boxes, anchors = np.concatenate([corner, corner + size], -1).astype(np.float32)
    for weights in ((1, 1, 1, 1), BOX_HEAD_WEIGHTS):
        again = decode(encode(boxes, anchors, weights), anchors, weights)
        np.testing.assert_allclose(again, boxes, atol=1e-4)


def test_encode_and_decode_are_always_finite():
    anchor = tf.constant([0.0, 0.0, 8.0, 8.0])
    assert np.isfinite(encode([0.0, 0.0, 0.0, 0.0], anchor)).all()
    assert np.isfinite(encode(anchor, [3.0, 3.0, 3.0, 3.0])).all()
    huge = decode([0.0, 0.0, 1e4, 1e4], anchor)
    np.testing.assert_allclose(huge, [4 - 250, 4 - 250, 4 + 250, 4 + 250], rtol=1e-5)


def test_clip_cuts_boxes_at_the_image_border():
    np.testing.assert_array_equal(clip([[-3.0, 2.0, 50.0, 90.0]], 40, 60), [[0, 2, 40, 60]])
