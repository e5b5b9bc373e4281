"""Boxes: area, overlap, and their coding as anchors plus offsets. Traced or eager."""

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

# Weights of (y, x, height, width) offsets in Fast R-CNN's second stage; 1 in the first.
SECOND_STAGE = (10.0, 10.0, 5.0, 5.0)
# A box may be decoded to at most 62.5 times its anchor, as in Detectron: exp() must not overflow.
_LARGEST = math.log(1_000 / 16)


def area(boxes: Any) -> tf.Tensor:
    """[..., 4] boxes -> [...] areas; 0 for padding and for boxes turned inside out."""
    ymin, xmin, ymax, xmax = tf.unstack(tf.convert_to_tensor(boxes), axis=-1)
    return tf.maximum(ymax - ymin, 0.0) * tf.maximum(xmax - xmin, 0.0)


def intersection(first: Any, second: Any) -> tf.Tensor:
    """[..., N, 4] and [..., M, 4] boxes -> the areas [..., N, M] that they share."""
    a, b = tf.expand_dims(first, -2), tf.expand_dims(second, -3)
    sides = tf.minimum(a[..., 2:], b[..., 2:]) - tf.maximum(a[..., :2], b[..., :2])
    return tf.reduce_prod(tf.maximum(sides, 0.0), -1)


def iou(first: Any, second: Any) -> tf.Tensor:
    """[..., N, 4] and [..., M, 4] boxes -> intersection over union [..., N, M], 0 for padding."""
    both = intersection(first, second)
    union = tf.expand_dims(area(first), -1) + tf.expand_dims(area(second), -2) - both
    return tf.math.divide_no_nan(both, union)


def encode(boxes: Any, anchors: Any, weights: Sequence[float] = (1, 1, 1, 1)) -> tf.Tensor:
    """Boxes as offsets from anchors (Girshick et al. 2014, arXiv:1311.2524, appendix C).

    Args:
      boxes: [..., 4].
      anchors: [..., 4].
      weights: of the offsets (y, x, height, width), so that each has about unit variance.

    Returns:
      [..., 4]: (centre - anchor's centre) / anchor's size, then log(size / anchor's size), times
      the weights. Finite for empty ones too, where it means nothing: NaN would go through a mask,
      as a gradient.
    """
    (cy, cx, h, w), (ay, ax, ah, aw) = _centres(boxes), _centres(anchors)
    h, w, ah, aw = (tf.maximum(side, 1e-3) for side in (h, w, ah, aw))
    offsets = [(cy - ay) / ah, (cx - ax) / aw, tf.math.log(h / ah), tf.math.log(w / aw)]
    return tf.stack(offsets, -1) * tf.constant(weights, tf.float32)


def decode(offsets: Any, anchors: Any, weights: Sequence[float] = (1, 1, 1, 1)) -> tf.Tensor:
    """The inverse of `encode`: offsets [..., 4] and anchors [..., 4] -> boxes [..., 4]."""
    dy, dx, dh, dw = tf.unstack(offsets / tf.constant(weights, tf.float32), axis=-1)
    ay, ax, ah, aw = _centres(anchors)
    cy, cx = ay + dy * ah, ax + dx * aw
    h, w = ah * tf.exp(tf.minimum(dh, _LARGEST)), aw * tf.exp(tf.minimum(dw, _LARGEST))
    return tf.stack([cy - h / 2, cx - w / 2, cy + h / 2, cx + w / 2], -1)


def clip(boxes: Any, height: float, width: float) -> tf.Tensor:
    """[..., 4] boxes, cut at the border of an image of that size."""
    return tf.clip_by_value(boxes, 0.0, tf.constant([height, width, height, width], tf.float32))


def _centres(boxes: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    ymin, xmin, ymax, xmax = tf.unstack(tf.convert_to_tensor(boxes), axis=-1)
    return (ymin + ymax) / 2, (xmin + xmax) / 2, ymax - ymin, xmax - xmin
