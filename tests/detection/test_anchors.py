"""Positions, sizes and order of anchors."""

import numpy as np
import pytest

from tfloss.detection.anchors import generate_anchors


def test_one_level_matches_hand_computed_anchors():
    found = generate_anchors((4, 8), [4], [[4.0]], [1.0])
    np.testing.assert_array_equal(found, [[0, 0, 4, 4], [0, 4, 4, 8]])


def test_aspect_ratios_keep_the_area():
    found = generate_anchors((4, 4), [4], [[8.0]], [0.25, 1.0, 4.0])
    sizes = found[:, 2:] - found[:, :2]
    np.testing.assert_allclose(sizes, [[4, 16], [8, 8], [16, 4]])
    np.testing.assert_allclose((found[:, 2:] + found[:, :2]) / 2, 2.0)


def test_levels_are_concatenated_and_cover_images_that_strides_do_not_divide():
    found = generate_anchors((10, 6), [4, 8], [[4.0, 6.0], [8.0, 12.0]])
    assert found.shape == ((3 * 2 + 2 * 1) * 2 * 3, 4)
    centres = (found[:, 2:] + found[:, :2]) / 2
    np.testing.assert_allclose(centres[:12, 1], [2] * 6 + [6] * 6, atol=1e-6)  # columns first
    np.testing.assert_allclose(centres[36:, 0], [4] * 6 + [12] * 6, atol=1e-6)


def test_sizes_that_do_not_fit_the_strides_are_rejected():
    with pytest.raises(ValueError, match="one list for each of the 2 strides, got 1 lists"):
        generate_anchors((8, 8), [4, 8], [[4.0]])
    with pytest.raises(ValueError, match="each needs the same number of sizes"):
        generate_anchors((8, 8), [4, 8], [[4.0], [4.0, 8.0]])
