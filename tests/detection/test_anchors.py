"""Anchors: their places, sizes and order."""

import numpy as np
import pytest

from tfloss.detection.anchors import anchors


def test_one_level_by_hand():
    found = anchors((4, 8), [4], [[4.0]], [1.0])
    np.testing.assert_array_equal(found, [[0, 0, 4, 4], [0, 4, 4, 8]])


def test_a_ratio_keeps_the_area():
    found = anchors((4, 4), [4], [[8.0]], [0.25, 1.0, 4.0])
    sizes = found[:, 2:] - found[:, :2]
    np.testing.assert_allclose(sizes, [[4, 16], [8, 8], [16, 4]])
    np.testing.assert_allclose((found[:, 2:] + found[:, :2]) / 2, 2.0)


def test_levels_come_one_after_the_other_and_cover_what_does_not_divide():
    found = anchors((10, 6), [4, 8], [[4.0, 6.0], [8.0, 12.0]])
    assert found.shape == ((3 * 2 + 2 * 1) * 2 * 3, 4)
    centres = (found[:, 2:] + found[:, :2]) / 2
    np.testing.assert_allclose(centres[:12, 1], [2] * 6 + [6] * 6, atol=1e-6)  # columns first
    np.testing.assert_allclose(centres[36:, 0], [4] * 6 + [12] * 6, atol=1e-6)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="2 strides need as many"):
        anchors((8, 8), [4, 8], [[4.0]])
    with pytest.raises(ValueError, match="all levels need as many"):
        anchors((8, 8), [4, 8], [[4.0], [4.0, 8.0]])
