"""CocoMetric against hand-computed average precisions of boxes and masks."""

import numpy as np
import pytest

from tfloss.detection.coco import CocoMetric, paste_mask

NAMES = ["circle", "square"]
# Pixel-aligned, so that a mask of ones is exactly the polygon.
FIRST, SECOND = [2.0, 2.0, 12.0, 12.0], [20.0, 20.0, 36.0, 30.0]
NONE = [0.0, 0.0, 0.0, 0.0]


def _truth(*objects, crowd=None, **more):
    """One image with (box, label) objects."""
    boxes = np.array([[box for box, _ in objects] or [NONE]], np.float32)
    labels = np.array([[label for _, label in objects] or [-1]])
    batch = {"image": np.zeros([1, 40, 40, 1]), "boxes": boxes, "labels": labels, **more}
    return batch if crowd is None else {**batch, "crowd": np.array([crowd])}


def _found(*objects, **more):
    """(box, label, score) detections, and one box of padding."""
    boxes, labels, scores = zip(*objects, (NONE, 0, 0.0), strict=True)
    return {
        "boxes": np.array([boxes], np.float32),
        "labels": np.array([labels]),
        "scores": np.array([scores], np.float32),
        **more,
    }


def _result(*images, masks=False):
    metric = CocoMetric(NAMES, masks=masks)
    for truth, found in images:
        metric.update(truth, found)
    return metric.result()


def test_perfect_boxes_have_precision_1():
    result = _result((_truth((FIRST, 0), (SECOND, 1)), _found((FIRST, 0, 0.9), (SECOND, 1, 0.6))))
    assert set(result) == {"box/AP", "box/AP50", "box/AP75", "box/AR"}
    np.testing.assert_allclose(list(result.values()), 1.0)


def test_one_of_two_objects_detected():
    # Precision is 1 up to recall 0.5: 51 of the 101 recalls 0, 0.01, ... 1.
    result = _result((_truth((FIRST, 0), (SECOND, 0)), _found((FIRST, 0, 0.9))))
    np.testing.assert_allclose(result["box/AP50"], 51 / 101)
    np.testing.assert_allclose(result["box/AR"], 0.5)


def test_a_false_positive_with_a_higher_score_halves_precision():
    found = _found((SECOND, 0, 0.9), (FIRST, 0, 0.8))
    np.testing.assert_allclose(_result((_truth((FIRST, 0)), found))["box/AP50"], 0.5)
    behind = _found((SECOND, 0, 0.7), (FIRST, 0, 0.8))
    np.testing.assert_allclose(_result((_truth((FIRST, 0)), behind))["box/AP50"], 1.0)


def test_a_detection_of_another_class_does_not_count():
    # One class has AP 0 for its object; the other has no object, and is left out.
    assert _result((_truth((FIRST, 0)), _found((FIRST, 1, 0.9))))["box/AP50"] == 0.0


def test_iou_thresholds():
    # 10 x 7.2 inside of 10 x 10: IoU 0.72, good for 5 of the 10 thresholds 0.5, 0.55, ... 0.95.
    short = [2.0, 2.0, 12.0, 9.2]
    result = _result((_truth((FIRST, 0)), _found((short, 0, 0.9))))
    np.testing.assert_allclose([result["box/AP50"], result["box/AP75"]], [1, 0])
    np.testing.assert_allclose(result["box/AP"], 0.5)


def test_a_detection_in_a_crowd_is_no_false_positive():
    truth = _truth((FIRST, 0), (SECOND, 0))
    found = _found((SECOND, 0, 0.9), (FIRST, 0, 0.8))
    crowd = _truth((FIRST, 0), (SECOND, 0), crowd=[False, True])
    np.testing.assert_allclose(_result((truth, found))["box/AP50"], 1.0)
    np.testing.assert_allclose(_result((crowd, found))["box/AP50"], 1.0)
    alone = _truth((FIRST, 0), crowd=[False])
    np.testing.assert_allclose(_result((alone, found))["box/AP50"], 0.5)


def test_images_are_independent_and_reset_clears_them():
    metric = CocoMetric(NAMES)
    metric.update(_truth((FIRST, 0)), _found((SECOND, 0, 0.9)))
    metric.update(_truth((SECOND, 0)), _found((FIRST, 0, 0.9)))
    assert metric.result()["box/AP50"] == 0.0
    metric.reset()
    metric.update(_truth((FIRST, 0)), _found((FIRST, 0, 0.9)))
    for _ in range(2):  # asked twice
        np.testing.assert_allclose(metric.result()["box/AP50"], 1.0)


def test_no_detections_and_no_objects():
    assert _result((_truth((FIRST, 0)), _found()))["box/AP50"] == 0.0
    assert np.isnan(_result((_truth(), _found((FIRST, 0, 0.9))))["box/AP50"])
    assert np.isnan(_result()["box/AP"])


def test_mask_precision_matches_hand_computed_values():
    square = [[2.0, 2.0], [12.0, 2.0], [12.0, 12.0], [2.0, 12.0]]
    polygons = np.array([[square + [square[-1]] * 3]])
    upper = np.zeros([1, 2, 14, 14])
    upper[0, 0, :7] = 1.0  # half of the object: IoU 0.5
    truth = _truth((FIRST, 0), polygons=polygons)

    whole = _result((truth, _found((FIRST, 0, 0.9), masks=np.ones([1, 2, 14, 14]))), masks=True)
    half = _result((truth, _found((FIRST, 0, 0.9), masks=upper)), masks=True)

    np.testing.assert_allclose([whole["mask/AP"], whole["box/AP"]], 1.0)
    np.testing.assert_allclose(half["mask/AP"], 0.1)  # at 0.5 only
    np.testing.assert_allclose(half["box/AP"], 1.0)


def test_a_mask_is_pasted_bilinearly():
    mask = np.array([[0.0, 1.0], [0.0, 1.0]])
    found = paste_mask(mask, [1.0, 2.0, 3.0, 6.0], 4, 8)
    # Cells' centres are at columns 3 and 5; pixels' at 2.5, 3.5, 4.5, 5.5.
    np.testing.assert_allclose(found[1], [0, 0, 0, 0.25, 0.75, 1, 0, 0])
    np.testing.assert_allclose(found.sum(1), [0, 2, 2, 0])
    np.testing.assert_allclose(paste_mask(np.ones([3, 3]), [-5.0, -5.0, 50.0, 50.0], 4, 8), 1.0)


def test_it_prints_nothing_and_rejects_unknown_labels(capsys):
    _result((_truth((FIRST, 0)), _found((FIRST, 0, 0.9))))
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="Label 7 has no name"):
        _result((_truth((FIRST, 7)), _found()))
