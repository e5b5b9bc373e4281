"""Which boxes NMS keeps, in which order, and how the result is padded."""

import numpy as np
import pytest
import tensorflow as tf

from tfloss.detection.nms import detect, propose

BOXES = tf.constant(
    [
        [
            [0.0, 0.0, 10.0, 10.0],
            [0.0, 0.0, 10.0, 9.0],  # IoU 0.9 with the first
            [0.0, 0.0, 10.0, 5.0],  # 0.5
            [20.0, 20.0, 30.0, 30.0],
        ]
    ]
)


def _propose(scores, **options):
    options = {"pre_nms_top_k": 4, "post_nms_top_k": 4, "iou_threshold": 0.7, **options}
    boxes, scores = propose(BOXES, tf.constant([scores]), **options)
    return boxes.numpy()[0], scores.numpy()[0]


def test_an_overlapping_box_with_a_lower_score_is_dropped():
    boxes, scores = _propose([0.5, 2.0, -3.0, 1.0])
    np.testing.assert_array_equal(scores, [2, 1, -3, -np.inf])
    np.testing.assert_array_equal(boxes[:3], BOXES.numpy()[0, [1, 3, 2]])
    np.testing.assert_array_equal(boxes[3], 0)


def test_an_excluded_box_does_not_suppress_others():
    _, scores = _propose([-np.inf, 2.0, 1.0, -np.inf])
    np.testing.assert_array_equal(scores, [2, 1, -np.inf, -np.inf])
    _, scores = _propose([-np.inf] * 4)
    np.testing.assert_array_equal(scores, [-np.inf] * 4)


def test_numbers_of_boxes_before_and_after_nms_are_limited():
    _, scores = _propose([4.0, 3.0, 2.0, 1.0], pre_nms_top_k=2)
    np.testing.assert_array_equal(scores, [4, -np.inf, -np.inf, -np.inf])
    _, scores = _propose([4.0, 3.0, 2.0, 1.0], post_nms_top_k=2)
    np.testing.assert_array_equal(scores, [4, 2])


def test_boxes_of_other_classes_are_not_suppressed():
    scores = tf.constant([[[0.9, 0.3], [0.2, 0.8], [0.6, 0.01], [0.04, 0.0]]])
    boxes, found, labels = detect(
        BOXES, scores, max_detections=6, score_threshold=0.05, iou_threshold=0.4
    )
    # Class 0: box 0 drops boxes 1 and 2. Class 1: box 1 drops box 0. Box 3 is below 0.05.
    np.testing.assert_allclose(found, [[0.9, 0.8, 0, 0, 0, 0]])
    np.testing.assert_array_equal(labels, [[0, 1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(boxes[0, :2], BOXES.numpy()[0, :2])
    np.testing.assert_array_equal(boxes[0, 2:], 0)


@pytest.mark.parametrize("jit", [False, True])
def test_detections_match_plain_greedy_nms(jit):
    random = np.random.RandomState(0)
    corner, size = random.rand(3, 60, 2) * 40, random.rand(3, 60, 2) * 20 + 4
    boxes = np.concatenate([corner, corner + size], -1).astype(np.float32)
    scores = random.rand(3, 60, 4).astype(np.float32)
    options = {"max_detections": 30, "score_threshold": 0.2, "iou_threshold": 0.5}
    run = tf.function(lambda b, s: detect(b, s, **options), jit_compile=jit)
    found, best, labels = (x.numpy() for x in run(boxes, scores))
    for i in range(3):
        expected = _plain_nms(boxes[i], scores[i], **options)
        np.testing.assert_allclose(best[i], [s for s, _, _ in expected], rtol=1e-6)
        np.testing.assert_array_equal(labels[i], [c for _, c, _ in expected])
        np.testing.assert_array_equal(found[i], [boxes[i, k] for _, _, k in expected])


def _plain_nms(boxes, scores, max_detections, score_threshold, iou_threshold):
    kept = []
    order = sorted(((s, c, k) for k, row in enumerate(scores) for c, s in enumerate(row)))[::-1]
    for score, label, k in order:
        if score >= score_threshold and all(
            c != label or _iou(boxes[k], boxes[j]) <= iou_threshold for _, c, j in kept
        ):
            kept.append((score, label, k))
    return kept[:max_detections]


def _iou(a, b):
    sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
    both = sides.prod()
    return both / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - both)
