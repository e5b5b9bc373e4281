"""RoIAlign over a feature pyramid. Traced.

Bilinear interpolation is separable, so a box's features are `Y @ features @ X`, with two narrow
matrices of hat functions for each box. Unlike a gather (or `tf.image.crop_and_resize`) it compiles
under XLA, and its gradient is a product of matrices too, not a scatter.
"""

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfloss.detection.boxes import area


def roi_align(
    features: Sequence[Any],
    strides: Sequence[int],
    boxes: Any,
    size: int,
    *,
    points: int = 2,
    canonical: float = 224.0,
    canonical_level: int | None = None,
) -> tf.Tensor:
    """The features of boxes, interpolated (He et al. 2017, arXiv:1703.06870).

    Each box is cut into size x size cells; a cell's value is the mean of points x points bilinear
    samples. A box looks at one level, by its size: at `canonical_level` if its area's root is
    `canonical`, one further for each doubling (Lin et al. 2017, arXiv:1612.03144, eq. 1).

    Args:
      features: of each level, [n, rows, columns, channels]; cell i covers pixels
        [i * stride, (i + 1) * stride).
      strides: of each level, rising.
      boxes: [n, R, 4] in pixels.
      size: of the output.
      points: samples per cell and direction.
      canonical: in pixels.
      canonical_level: index into `features`; by default the second last.

    Returns:
      [n, R, size, size, channels] of the features' dtype.
    """
    boxes = tf.convert_to_tensor(boxes)
    if canonical_level is None:
        canonical_level = max(len(features) - 2, 0)
    root = tf.sqrt(tf.maximum(area(boxes), 1e-6))
    level = canonical_level + tf.floor(tf.math.log(root / canonical) / math.log(2.0) + 1e-6)
    level = tf.clip_by_value(tf.cast(level, tf.int32), 0, len(features) - 1)
    total: Any = 0.0
    for number, (each, stride) in enumerate(zip(features, strides, strict=True)):
        here = tf.cast(level == number, tf.float32)[:, :, tf.newaxis, tf.newaxis]
        y = _hats(boxes[..., 0], boxes[..., 2], each.shape[1], stride, size, points) * here
        x = _hats(boxes[..., 1], boxes[..., 3], each.shape[2], stride, size, points)
        rows = tf.einsum("nrih,nhwc->nriwc", tf.cast(y, each.dtype), each)
        total += tf.einsum("nrjw,nriwc->nrijc", tf.cast(x, each.dtype), rows)
    return total


def _hats(low, high, length: int, stride: int, size: int, points: int) -> tf.Tensor:
    """[n, R] ends -> [n, R, size, length] weights of the cells along one direction."""
    steps = (tf.range(size * points, dtype=tf.float32) + 0.5) / (size * points)
    at = low[..., tf.newaxis] + (high - low)[..., tf.newaxis] * steps
    at = tf.clip_by_value(at / stride - 0.5, 0.0, length - 1.0)
    hats = tf.maximum(
        1.0 - tf.abs(tf.expand_dims(at, -1) - tf.range(length, dtype=tf.float32)), 0.0
    )
    shape = tf.concat([tf.shape(low), [size, points, length]], 0)
    return tf.reduce_mean(tf.reshape(hats, shape), -2)
