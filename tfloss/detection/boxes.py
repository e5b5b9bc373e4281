"""Boxes: areas, IoU, and their encoding as offsets from anchors. Traced or eager."""

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

# Weights of the (y, x, height, width) offsets in the box head of Fast R-CNN. The RPN uses ones.
BOX_HEAD_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
# A decoded box is at most 62.5 times as large as its anchor, as in Detectron: exp() must not
# overflow.
_MAX_LOG_SCALE = math.log(1_000 / 16)


def area(boxes: Any) -> tf.Tensor:
    """Computes the areas of boxes.

    Runs traced or eagerly.

    Args:
      boxes: Boxes, float [..., 4], in pixels.

    Returns:
      Areas, float [...]. Padding and inverted boxes have area 0.
    """
    ymin, xmin, ymax, xmax = tf.unstack(tf.convert_to_tensor(boxes), axis=-1)
    return tf.maximum(ymax - ymin, 0.0) * tf.maximum(xmax - xmin, 0.0)


def intersection(first: Any, second: Any) -> tf.Tensor:
    """Computes the intersection area of each pair of boxes.

    Runs traced or eagerly.

    Args:
      first: Boxes, float [..., N, 4].
      second: Boxes, float [..., M, 4].

    Returns:
      Intersection areas, float [..., N, M].
    """
    a, b = tf.expand_dims(first, -2), tf.expand_dims(second, -3)
    sides = tf.minimum(a[..., 2:], b[..., 2:]) - tf.maximum(a[..., :2], b[..., :2])
    return tf.reduce_prod(tf.maximum(sides, 0.0), -1)


def iou(first: Any, second: Any) -> tf.Tensor:
    """Computes the intersection over union (IoU) of each pair of boxes.

    Runs traced or eagerly.

    Args:
      first: Boxes, float [..., N, 4].
      second: Boxes, float [..., M, 4].

    Returns:
      IoU, float [..., N, M]. It is 0 for padding, even for two boxes of padding.
    """
    both = intersection(first, second)
    union = tf.expand_dims(area(first), -1) + tf.expand_dims(area(second), -2) - both
    return tf.math.divide_no_nan(both, union)


def encode(boxes: Any, anchors: Any, weights: Sequence[float] = (1, 1, 1, 1)) -> tf.Tensor:
    """Encodes boxes as offsets from anchors (Girshick et al. 2014, arXiv:1311.2524, appendix C).

    Runs traced or eagerly.

    Args:
      boxes: Boxes, float32 [..., 4].
      anchors: Anchors, float32 [..., 4].
      weights: Factors of the (y, x, height, width) offsets that give each about unit variance.

    Returns:
      Offsets, float32 [..., 4]: (centre - anchor centre) / anchor size, then log(size / anchor
      size), multiplied by the weights. Offsets of padding are finite but meaningless; a NaN would
      pass through a mask in the gradient.
    """
    (cy, cx, h, w), (ay, ax, ah, aw) = _centres_and_sizes(boxes), _centres_and_sizes(anchors)
    h, w, ah, aw = (tf.maximum(side, 1e-3) for side in (h, w, ah, aw))
    offsets = [(cy - ay) / ah, (cx - ax) / aw, tf.math.log(h / ah), tf.math.log(w / aw)]
    return tf.stack(offsets, -1) * tf.constant(weights, tf.float32)


def decode(offsets: Any, anchors: Any, weights: Sequence[float] = (1, 1, 1, 1)) -> tf.Tensor:
    """Decodes offsets from anchors into boxes. This is the inverse of `encode`.

    Runs traced or eagerly.

    Args:
      offsets: Offsets, float32 [..., 4], as returned by `encode`.
      anchors: Anchors, float32 [..., 4].
      weights: Factors that the offsets were multiplied by.

    Returns:
      Boxes, float32 [..., 4]. Each side is at most 62.5 times that of its anchor.
    """
    dy, dx, dh, dw = tf.unstack(offsets / tf.constant(weights, tf.float32), axis=-1)
    ay, ax, ah, aw = _centres_and_sizes(anchors)
    cy, cx = ay + dy * ah, ax + dx * aw
    h = ah * tf.exp(tf.minimum(dh, _MAX_LOG_SCALE))
    w = aw * tf.exp(tf.minimum(dw, _MAX_LOG_SCALE))
    return tf.stack([cy - h / 2, cx - w / 2, cy + h / 2, cx + w / 2], -1)


def clip(boxes: Any, height: float, width: float) -> tf.Tensor:
    """Clips boxes to the border of an image.

    Runs traced or eagerly.

    Args:
      boxes: Boxes, float32 [..., 4].
      height: Image height in pixels.
      width: Image width in pixels.

    Returns:
      Clipped boxes, float32 [..., 4].
    """
    return tf.clip_by_value(boxes, 0.0, tf.constant([height, width, height, width], tf.float32))


def _centres_and_sizes(boxes: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    ymin, xmin, ymax, xmax = tf.unstack(tf.convert_to_tensor(boxes), axis=-1)
    return (ymin + ymax) / 2, (xmin + xmax) / 2, ymax - ymin, xmax - xmin
