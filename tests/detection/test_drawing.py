"""Drawing: where lines and masks are, and what is left out."""

import numpy as np

from tfloss.detection.drawing import boxes

RED = [255, 0, 0]


def _red(image):
    return (image == RED).all(-1)


def test_a_box_is_where_it_should_be():
    image = np.zeros([2, 300, 300, 3], np.uint8)
    drawn = boxes(image, [[[10, 20, 40, 60]], [[0, 0, 0, 0]]], colour="red")
    assert drawn.shape == (2, 300, 300, 3)
    red = _red(drawn[0])
    assert red[10, 20:60].all() and red[39, 20:60].all()
    assert red[10:40, 20].all() and red[10:40, 59].all()
    assert red.sum() == 2 * 40 + 2 * 28
    assert not drawn[1].any()  # padding
    assert not image.any()  # what is given stays as it is


def test_small_grey_floats_are_enlarged():
    drawn = boxes(np.full([1, 64, 32, 1], 0.5), [[[8, 4, 16, 12]]], colour="red")
    assert drawn.shape == (1, 256, 128, 3)
    assert _red(drawn[0])[32, 16:48].all()
    assert (drawn[0, 0, 0] == 128).all()


def test_low_scores_are_left_out_and_names_are_written():
    image = np.zeros([1, 300, 300, 3])
    two = [[[20, 20, 60, 60], [100, 100, 150, 150]]]
    some = boxes(image, two, [[0.9, 0.2]], least=0.5, colour="red")
    assert _red(some[0])[20, 20:60].all() and not _red(some[0])[100:].any()
    named = boxes(image, two, [[0.9, 0.2]], [[1, 0]], names=["a", "b"], colour="red")
    wordy = named[0, 9:20, 20:60] > 0
    assert wordy.sum() > (some[0, 9:20, 20:60] > 0).sum() > 0


def test_masks_are_tinted_and_labels_have_colours():
    image = np.zeros([1, 300, 300, 3])
    half = np.zeros([1, 2, 4, 4])
    half[0, :, :2] = 1
    two = [[[0, 0, 40, 40], [100, 100, 140, 140]]]
    drawn = boxes(image, two, None, [[0, 1]], half)
    tint = drawn[0, 5:15, 5:35]
    assert (tint == tint[0, 0]).all() and tint.any()
    assert not drawn[0, 25:38, 2:38].any()
    assert (drawn[0, 110, 110] != tint[0, 0]).any()
