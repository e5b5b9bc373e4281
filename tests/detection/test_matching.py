"""Which boxes are positive or negative, and which object each is matched with."""

import numpy as np
import pytest
import tensorflow as tf

from tfloss.detection.matching import match

# IoU with the object [0, 0, 10, 10]: 1, 0.5, 0.25, 0, and padding.
BOXES = tf.constant(
    [
        [0.0, 0.0, 10.0, 10.0],
        [0.0, 0.0, 5.0, 10.0],
        [0.0, 0.0, 5.0, 5.0],
        [20.0, 20.0, 30.0, 30.0],
        [0.0, 0.0, 0.0, 0.0],
    ]
)
OBJECT = [0.0, 0.0, 10.0, 10.0]
PADDING = [0.0, 0.0, 0.0, 0.0]


def _match(truth, **options):
    options = {"high_threshold": 0.6, "low_threshold": 0.3, **options}
    return match(BOXES, tf.constant([truth]), **options)


def test_thresholds_match_hand_computed_results():
    found = _match([PADDING, OBJECT])
    np.testing.assert_array_equal(found.positive, [[True, False, False, False, False]])
    np.testing.assert_array_equal(found.negative, [[False, False, True, True, False]])
    np.testing.assert_array_equal(found.index[0, :3], [1, 1, 1])


def test_a_threshold_itself_is_positive_and_not_negative():
    np.testing.assert_array_equal(_match([OBJECT], high_threshold=0.5).positive[0, :3], [1, 1, 0])
    np.testing.assert_array_equal(_match([OBJECT], low_threshold=0.25).negative[0], [0, 0, 0, 1, 0])


def test_an_image_without_objects_has_negatives_only():
    found = _match([PADDING, PADDING], allow_low_quality_matches=True)
    assert not found.positive.numpy().any()
    np.testing.assert_array_equal(found.negative, [[True] * 4 + [False]])


def test_low_quality_matches_cover_every_object_and_all_ties_are_positive():
    small = [0.0, 0.0, 2.0, 5.0]  # IoU 0.1, 0.2, 0.4 with the first three
    assert not _match([small]).positive.numpy().any()
    found = _match([small], allow_low_quality_matches=True)
    np.testing.assert_array_equal(found.positive, [[False, False, True, False, False]])
    assert not found.negative[0, 2]

    far = [22.0, 20.0, 28.0, 30.0]
    twice = tf.constant([[20.0, 20.0, 30.0, 30.0]] * 2)
    np.testing.assert_array_equal(
        match(
            twice, [[far]], high_threshold=0.9, low_threshold=0.3, allow_low_quality_matches=True
        ).positive,
        [[True, True]],
    )


def test_a_low_quality_match_goes_to_the_object_without_another_box():
    # The first box has a higher IoU with the first object, but is the best one of the second.
    boxes = tf.constant([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 11.0]])
    first, second = [0.0, 0.0, 10.0, 11.0], [0.0, 0.0, 4.0, 10.0]
    found = match(
        boxes,
        [[first, second]],
        high_threshold=0.95,
        low_threshold=0.3,
        allow_low_quality_matches=True,
    )
    np.testing.assert_array_equal(found.index, [[1, 0]])
    np.testing.assert_array_equal(found.positive, [[True, True]])


def test_no_box_is_matched_with_a_crowd_and_boxes_inside_are_not_negative():
    truth = tf.constant([[OBJECT, [15.0, 15.0, 40.0, 40.0]]])
    without = match(BOXES, truth, high_threshold=0.6, low_threshold=0.3)
    crowd = match(
        BOXES,
        truth,
        high_threshold=0.6,
        low_threshold=0.3,
        allow_low_quality_matches=True,
        crowd=tf.constant([[False, True]]),
    )
    np.testing.assert_array_equal(without.negative[0], [0, 0, 1, 1, 0])
    np.testing.assert_array_equal(crowd.negative[0], [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(crowd.positive[0], [1, 0, 0, 0, 0])


def test_each_image_has_its_own_boxes_and_objects():
    boxes = tf.stack([BOXES, BOXES[::-1]])
    found = match(boxes, tf.constant([[OBJECT], [PADDING]]), high_threshold=0.6, low_threshold=0.3)
    np.testing.assert_array_equal(found.positive[:, 0], [True, False])
    assert not found.positive[1].numpy().any()


def test_crossed_thresholds_are_rejected():
    with pytest.raises(ValueError, match="low_threshold=0.7 must not be above high_threshold=0.5"):
        _match([OBJECT], high_threshold=0.5, low_threshold=0.7)
