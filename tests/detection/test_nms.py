"""Suppression: what is kept, in which order, and how it is padded."""

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


def _propose(scores, count=4, **options):
    options = {"considered": 4, "overlap": 0.7, **options}
    boxes, scores = propose(BOXES, tf.constant([scores]), count, **options)
    return boxes.numpy()[0], scores.numpy()[0]


def test_a_lower_neighbour_is_dropped():
    boxes, scores = _propose([0.5, 2.0, -3.0, 1.0])
    np.testing.assert_array_equal(scores, [2, 1, -3, -np.inf])
    np.testing.assert_array_equal(boxes[:3], BOXES.numpy()[0, [1, 3, 2]])
    np.testing.assert_array_equal(boxes[3], 0)


def test_a_box_kept_out_does_not_suppress_others():
    _, scores = _propose([-np.inf, 2.0, 1.0, -np.inf])
    np.testing.assert_array_equal(scores, [2, 1, -np.inf, -np.inf])
    _, scores = _propose([-np.inf] * 4)
    np.testing.assert_array_equal(scores, [-np.inf] * 4)


def test_only_so_many_are_looked_at_and_kept():
    _, scores = _propose([4.0, 3.0, 2.0, 1.0], considered=2)
    np.testing.assert_array_equal(scores, [4, -np.inf, -np.inf, -np.inf])
    _, scores = _propose([4.0, 3.0, 2.0, 1.0], count=2)
    np.testing.assert_array_equal(scores, [4, 2])


def test_other_classes_are_not_suppressed():
    scores = tf.constant([[[0.9, 0.3], [0.2, 0.8], [0.6, 0.01], [0.04, 0.0]]])
    boxes, found, labels = detect(BOXES, scores, 6, least=0.05, overlap=0.4)
    # Class 0: box 0 drops boxes 1 and 2. Class 1: box 1 drops box 0. Box 3 is below 0.05.
    np.testing.assert_allclose(found, [[0.9, 0.8, 0, 0, 0, 0]])
    np.testing.assert_array_equal(labels, [[0, 1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(boxes[0, :2], BOXES.numpy()[0, :2])
    np.testing.assert_array_equal(boxes[0, 2:], 0)


@pytest.mark.parametrize("jit", [False, True])
def test_against_the_plain_algorithm(jit):
    random = np.random.RandomState(0)
    corner, size = random.rand(3, 60, 2) * 40, random.rand(3, 60, 2) * 20 + 4
    boxes = np.concatenate([corner, corner + size], -1).astype(np.float32)
    scores = random.rand(3, 60, 4).astype(np.float32)
    run = tf.function(lambda b, s: detect(b, s, 30, least=0.2, overlap=0.5), jit_compile=jit)
    found, best, labels = (x.numpy() for x in run(boxes, scores))
    for i in range(3):
        expected = _plain(boxes[i], scores[i], 30, 0.2, 0.5)
        np.testing.assert_allclose(best[i], [s for s, _, _ in expected], rtol=1e-6)
        np.testing.assert_array_equal(labels[i], [c for _, c, _ in expected])
        np.testing.assert_array_equal(found[i], [boxes[i, k] for _, _, k in expected])


def _plain(boxes, scores, count, least, overlap):
    kept = []
    order = sorted(((s, c, k) for k, row in enumerate(scores) for c, s in enumerate(row)))[::-1]
    for score, label, k in order:
        if score >= least and all(
            c != label or _iou(boxes[k], boxes[j]) <= overlap for _, c, j in kept
        ):
            kept.append((score, label, k))
    return kept[:count]


def _iou(a, b):
    sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
    both = sides.prod()
    return both / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - both)
