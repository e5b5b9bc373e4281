"""Rasterizing polygons into bit masks."""

import numpy as np
import pytest
import tensorflow as tf

from tfloss.detection.masks import rasterize

TRIANGLE = [[0.0, 0.0], [8.0, 0.0], [8.0, 8.0]]  # (y, x): the lower left half of a square
SQUARE = [0.0, 0.0, 8.0, 8.0]


def test_a_triangle_matches_the_hand_drawn_mask():
    # Moved down slightly; otherwise cell centres would lie on the diagonal.
    below = np.add(TRIANGLE, [[-0.1, 0.0]])
    found = rasterize(tf.constant(below, tf.float32), tf.constant(SQUARE), 4)
    np.testing.assert_array_equal(found, [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]])


def test_each_box_gets_its_own_part_of_the_polygon():
    below = tf.constant(np.add(TRIANGLE, [[-0.1, 0.0]]), tf.float32)
    np.testing.assert_array_equal(rasterize(below, [4.0, 0.0, 8.0, 4.0], 2), [[1, 1], [1, 1]])
    np.testing.assert_array_equal(rasterize(below, [0.0, 4.0, 4.0, 8.0], 2), [[0, 0], [0, 0]])
    # A box that is larger than the polygon has an empty border.
    wide = rasterize(below, [-8.0, -8.0, 16.0, 16.0], 6).numpy()
    assert wide.sum() == 3 and wide[2, 2] and wide[3, 2] and wide[3, 3]


def test_repeated_corners_and_orientation_do_not_change_the_mask():
    random = np.random.RandomState(0)
    angle = np.sort(random.rand(9)) * 2 * np.pi
    corners = 4 + np.stack([np.sin(angle), np.cos(angle)], -1) * (1 + 3 * random.rand(9, 1))
    plain = rasterize(tf.constant(corners, tf.float32), SQUARE, 16).numpy()
    padded = np.concatenate([corners, np.repeat(corners[-1:], 5, 0)])
    assert 20 < plain.sum() < 200
    np.testing.assert_array_equal(rasterize(tf.constant(padded, tf.float32), SQUARE, 16), plain)
    np.testing.assert_array_equal(
        rasterize(tf.constant(corners[::-1].copy(), tf.float32), SQUARE, 16), plain
    )


def test_padding_gives_an_empty_mask():
    assert not rasterize(tf.zeros([5, 2]), SQUARE, 4).numpy().any()
    assert not rasterize(tf.constant(TRIANGLE), [0.0] * 4, 4).numpy().any()


@pytest.mark.parametrize("jit", [False, True])
def test_batches_give_the_same_masks_with_and_without_xla(jit):
    polygons = tf.constant([[TRIANGLE, TRIANGLE[::-1]]]) + 0.05
    run = tf.function(lambda p: rasterize(p, [[SQUARE, SQUARE]], 4), jit_compile=jit)
    found = run(polygons).numpy()
    assert found.shape == (1, 2, 4, 4)
    np.testing.assert_array_equal(found[0, 0], found[0, 1])
    assert found[0, 0].sum() in (6, 10)
