"""RoIAlign against hand-computed samples and a plain gather."""

import numpy as np
import pytest
import tensorflow as tf

from tfloss.detection.roi_align import roi_align


def _ramp(rows, columns, stride):
    """Features that equal the pixel coordinates (y, x) of the cell centres."""
    y, x = np.meshgrid(
        (np.arange(rows) + 0.5) * stride, (np.arange(columns) + 0.5) * stride, indexing="ij"
    )
    return tf.constant(np.stack([y, x], -1)[None], tf.float32)


def test_on_a_ramp_each_cell_has_the_coordinates_of_its_centre():
    features = _ramp(16, 12, 4)
    boxes = tf.constant([[[8.0, 4.0, 20.0, 28.0], [3.0, 5.0, 9.0, 6.0]]])
    found = roi_align([features], [4], boxes, 3)
    np.testing.assert_allclose(found[0, 0, :, 0, 0], [10, 14, 18], rtol=1e-5)
    np.testing.assert_allclose(found[0, 0, 0, :, 1], [8, 16, 24], rtol=1e-5)
    np.testing.assert_allclose(found[0, 1, 1, :, 1], [5 + 1 / 6, 5.5, 6 - 1 / 6], rtol=1e-5)


def test_the_border_is_repeated_beyond_the_outermost_centres():
    found = roi_align([_ramp(4, 4, 4)], [4], tf.constant([[[0.0, 0.0, 2.0, 2.0]]]), 2)
    np.testing.assert_allclose(found, 2.0)  # the first cell's centre


def test_a_box_is_pooled_from_the_level_of_its_size():
    levels = [tf.fill([1, 64 // s, 64 // s, 1], float(s)) for s in (4, 8, 16)]
    sides = [4.0, 15.9, 16.0, 31.9, 32.0, 64.0]
    boxes = tf.constant([[[0.0, 0.0, side, side] for side in sides]])
    found = roi_align(levels, [4, 8, 16], boxes, 1, canonical_box_size=16.0)
    np.testing.assert_allclose(found[0, :, 0, 0, 0], [4, 4, 8, 8, 16, 16])


def test_images_are_independent_and_padding_is_finite():
    features = tf.stack([tf.zeros([8, 8, 3]), tf.ones([8, 8, 3])])
    boxes = tf.constant([[[0.0, 0.0, 9.0, 9.0], [0.0] * 4]] * 2)
    found = roi_align([features], [4], boxes, 2)
    np.testing.assert_allclose(found[0], 0.0)
    np.testing.assert_allclose(found[1], 1.0)


@pytest.mark.parametrize("jit", [False, True])
def test_values_and_gradient_equal_those_of_a_plain_gather(jit):
    random = np.random.RandomState(0)
    features = tf.constant(random.randn(2, 9, 7, 3), tf.float32)
    corner = random.rand(2, 5, 2) * 20
    boxes = tf.constant(
        np.concatenate([corner, corner + 1 + random.rand(2, 5, 2) * 15], -1), "float32"
    )
    weights = tf.constant(random.randn(2, 5, 4, 4, 3), tf.float32)

    @tf.function(jit_compile=jit)
    def ours(features):
        with tf.GradientTape() as tape:
            tape.watch(features)
            found = roi_align([features], [4], boxes, 4, sampling_ratio=2)
            total = tf.reduce_sum(found * weights)
        return found, tape.gradient(total, features)

    with tf.GradientTape() as tape:
        tape.watch(features)
        found = _gathered(features, boxes.numpy(), 4, 4, 2)
        total = tf.reduce_sum(found * weights)
    np.testing.assert_allclose(ours(features)[0], found, atol=1e-5)
    np.testing.assert_allclose(ours(features)[1], tape.gradient(total, features), atol=1e-4)


def _gathered(features, boxes, stride, size, ratio):
    rows, columns = features.shape[1:3]
    found = []
    for image, each in zip(features, boxes, strict=True):
        for box in each:
            at = (np.arange(size * ratio) + 0.5) / (size * ratio)
            y = np.clip((box[0] + (box[2] - box[0]) * at) / stride - 0.5, 0, rows - 1)
            x = np.clip((box[1] + (box[3] - box[1]) * at) / stride - 0.5, 0, columns - 1)
            y, x = (v.ravel() for v in np.meshgrid(y, x, indexing="ij"))
            y0 = np.minimum(np.floor(y).astype(int), rows - 2)
            x0 = np.minimum(np.floor(x).astype(int), columns - 2)
            total = 0.0
            for dy in (0, 1):
                for dx in (0, 1):
                    w = (1 - np.abs(y - y0 - dy)) * (1 - np.abs(x - x0 - dx))
                    picked = tf.gather_nd(image, np.stack([y0 + dy, x0 + dx], -1))
                    total += picked * tf.constant(w[:, None], tf.float32)
            total = tf.reshape(total, [size, ratio, size, ratio, -1])
            found.append(tf.reduce_mean(total, [1, 3]))
    return tf.reshape(tf.stack(found), [*boxes.shape[:2], size, size, -1])
