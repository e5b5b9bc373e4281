"""RoIAlign over a feature pyramid. Traced.

Bilinear interpolation is separable, so the features of a box are `Y @ features @ X`, with two
sparse matrices of interpolation weights for each box. Unlike a gather (or
`tf.image.crop_and_resize`) this compiles under XLA, and its gradient is a product of matrices too,
not a scatter.
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
    output_size: int,
    *,
    sampling_ratio: int = 2,
    canonical_box_size: float = 224.0,
    canonical_level: int | None = None,
) -> tf.Tensor:
    """Interpolates the features of each box (He et al. 2017, arXiv:1703.06870).

    Each box is divided into output_size x output_size cells. The value of a cell is the mean of
    sampling_ratio x sampling_ratio bilinear samples. A box is pooled from one level, chosen by its
    size: from `canonical_level` if the square root of its area is `canonical_box_size`, and one
    level higher for each doubling (Lin et al. 2017, arXiv:1612.03144, eq. 1). Pixel coordinates
    are aligned as with `aligned=True` in torchvision. Runs traced or eagerly.

    Args:
      features: Feature maps of the levels, each [n, rows, columns, channels]. Cell i covers the
        pixels [i * stride, (i + 1) * stride).
      strides: Strides of the levels in pixels, in ascending order.
      boxes: Boxes, float32 [n, R, 4], in pixels.
      output_size: Number of rows and of columns of the output.
      sampling_ratio: Number of samples in each cell along each axis.
      canonical_box_size: Size, in pixels, of a box that is pooled from `canonical_level`.
      canonical_level: Index into `features`; the second last by default.

    Returns:
      Features of the boxes, [n, R, output_size, output_size, channels], of the dtype of
      `features`.
    """
    boxes = tf.convert_to_tensor(boxes)
    if canonical_level is None:
        canonical_level = max(len(features) - 2, 0)
    box_size = tf.sqrt(tf.maximum(area(boxes), 1e-6))
    doublings = tf.math.log(box_size / canonical_box_size) / math.log(2.0)
    level = canonical_level + tf.floor(doublings + 1e-6)
    level = tf.clip_by_value(tf.cast(level, tf.int32), 0, len(features) - 1)
    samples = (output_size, sampling_ratio)
    total: Any = 0.0
    for number, (feature, stride) in enumerate(zip(features, strides, strict=True)):
        on_level = tf.cast(level == number, tf.float32)[:, :, tf.newaxis, tf.newaxis]
        y = _weights(boxes[..., 0], boxes[..., 2], feature.shape[1], stride, *samples) * on_level
        x = _weights(boxes[..., 1], boxes[..., 3], feature.shape[2], stride, *samples)
        rows = tf.einsum("nrih,nhwc->nriwc", tf.cast(y, feature.dtype), feature)
        total += tf.einsum("nrjw,nriwc->nrijc", tf.cast(x, feature.dtype), rows)
    return total


def _weights(
    low: Any,
    high: Any,
    length: int,
    stride: int,
    output_size: int,
    sampling_ratio: int,
) -> tf.Tensor:
    """Computes interpolation weights [n, R, output_size, length] along one axis.

    `low` and `high` are the ends of the boxes along that axis, float32 [n, R], in pixels.
    """
    samples = output_size * sampling_ratio
    steps = (tf.range(samples, dtype=tf.float32) + 0.5) / samples
    positions = low[..., tf.newaxis] + (high - low)[..., tf.newaxis] * steps
    positions = tf.clip_by_value(positions / stride - 0.5, 0.0, length - 1.0)
    weights = tf.maximum(
        1.0 - tf.abs(tf.expand_dims(positions, -1) - tf.range(length, dtype=tf.float32)), 0.0
    )
    shape = tf.concat([tf.shape(low), [output_size, sampling_ratio, length]], 0)
    return tf.reduce_mean(tf.reshape(weights, shape), -2)
