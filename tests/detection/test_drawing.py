"""Positions of drawn lines and masks, and boxes that are not drawn."""

import numpy as np

from tfloss.detection.drawing import COLORS, draw_boxes, draw_predictions, draw_rows

RED = [255, 0, 0]


def _red(image):
    return (image == RED).all(-1)


def test_box_edges_are_drawn_at_the_box():
    image = np.zeros([2, 300, 300, 3], np.uint8)
    drawn = draw_boxes(image, [[[10, 20, 40, 60]], [[0, 0, 0, 0]]], color="red")
    assert drawn.shape == (2, 300, 300, 3)
    red = _red(drawn[0])
    assert red[10, 20:60].all() and red[39, 20:60].all()
    assert red[10:40, 20].all() and red[10:40, 59].all()
    assert red.sum() == 2 * 40 + 2 * 28
    assert not drawn[1].any()  # padding
    assert not image.any()  # the argument is not modified


def test_small_grey_floats_are_enlarged():
    drawn = draw_boxes(np.full([1, 64, 32, 1], 0.5), [[[8, 4, 16, 12]]], color="red")
    assert drawn.shape == (1, 256, 128, 3)
    assert _red(drawn[0])[32, 16:48].all()
    assert (drawn[0, 0, 0] == 128).all()


def test_low_scores_are_not_drawn_and_class_names_are_written():
    image = np.zeros([1, 300, 300, 3])
    two = [[[20, 20, 60, 60], [100, 100, 150, 150]]]
    some = draw_boxes(image, two, [[0.9, 0.2]], score_threshold=0.5, color="red")
    assert _red(some[0])[20, 20:60].all() and not _red(some[0])[100:].any()
    named = draw_boxes(image, two, [[0.9, 0.2]], [[1, 0]], class_names=["a", "b"], color="red")
    wordy = named[0, 9:20, 20:60] > 0
    assert wordy.sum() > (some[0, 9:20, 20:60] > 0).sum() > 0


def test_masks_are_tinted_and_each_class_has_a_color():
    image = np.zeros([1, 300, 300, 3])
    half = np.zeros([1, 2, 4, 4])
    half[0, :, :2] = 1
    two = [[[0, 0, 40, 40], [100, 100, 140, 140]]]
    drawn = draw_boxes(image, two, None, [[0, 1]], half)
    tint = drawn[0, 5:15, 5:35]
    assert (tint == tint[0, 0]).all() and tint.any()
    assert not drawn[0, 25:38, 2:38].any()
    assert (drawn[0, 110, 110] != tint[0, 0]).any()


def test_a_caption_stands_on_the_color_of_its_box_and_within_the_image():
    boxes = [[[0, 0, 40, 60], [200, 250, 240, 300]]]
    drawn = draw_boxes(np.zeros([1, 300, 300, 3]), boxes, [[0.9, 0.8]], color="red")[0]
    for top, left in ((1, 1), (187, 250)):  # inside of the first box, above the second one
        label = drawn[top : top + 12, left : left + 20]
        assert _red(label).mean() > 0.3  # the ground
        assert (label.min(-1) > 128).any()  # white text


def test_predictions_are_drawn_as_their_boxes_are():
    image = np.zeros([3, 300, 300, 3])
    found = {
        "boxes": np.tile([[[20.0, 20, 60, 60], [100, 100, 150, 150]]], [3, 1, 1]),
        "scores": np.tile([[0.9, 0.2]], [3, 1]),
        "labels": np.tile([[1, 0]], [3, 1]),
    }
    drawn = draw_predictions({"image": image, "id": np.arange(3)}, found, max_images=2)
    shown = [found[name][:2] for name in ("boxes", "scores", "labels")]
    np.testing.assert_array_equal(drawn, draw_boxes(image[:2], *shown, score_threshold=0.3))
    assert drawn[:, :90].any() and not drawn[:, 90:].any()  # a score of 0.2 is too low


def test_captions_do_not_cover_each_other():
    boxes = np.tile([100, 100, 160, 200], [1, 6, 1])
    drawn = draw_boxes(np.zeros([1, 300, 300, 3]), boxes, [[0.5] * 6], [range(6)])[0]
    one = draw_boxes(np.zeros([1, 300, 300, 3]), boxes[:, :1], [[0.5]], [[0]])[0]
    area = _rgb(drawn, 0)  # of the first, which stands where it would stand alone
    assert (drawn[85:99] == one[85:99])[:, 100:130].all()
    for label in range(6):
        assert _rgb(drawn, label) >= 0.8 * area - 2 * 260  # its outline is covered by others


def _rgb(image, label):
    color = np.array([int(COLORS[label][i : i + 2], 16) for i in (1, 3, 5)])
    return (image == color).all(-1).sum()


def test_rows_are_enlarged_and_named():
    one, two = np.full([3, 28, 28, 1], 0.5), np.full([3, 28, 28, 1], 255, np.uint8)
    (drawn,) = draw_rows(["grey", "w"], one, two)
    left = drawn.shape[1] - 3 * 88
    assert drawn.shape == (2 * 88, left + 3 * 88, 3) and left > 30
    assert (drawn[:84, left : left + 84] == 128).all() and (drawn[88:172, left:] == 255).all()
    assert (drawn[30:60, :left] == 0).any() and (drawn[118:148, :left] == 0).any()  # text
    assert (drawn[84:88] == 255).all()  # between the rows
