"""Matches anchors or proposals with ground-truth objects. Traced or eager."""

import dataclasses
from typing import Any

import tensorflow as tf

from tfloss.detection.boxes import area, intersection, iou


@dataclasses.dataclass(frozen=True)
class Match:
    """The result of `match` for n images with A boxes each.

    A box that is neither positive nor negative should be ignored by all losses.

    Attributes:
      index: Index of the object with the highest IoU, int32 [n, A]. It is valid for negative and
        ignored boxes too, so `tf.gather(truth, index, batch_dims=1)` is always defined.
      positive: Whether the box is positive, bool [n, A].
      negative: Whether the box is negative, bool [n, A].
    """

    index: tf.Tensor
    positive: tf.Tensor
    negative: tf.Tensor


def match(
    boxes: Any,
    truth: Any,
    *,
    high_threshold: float,
    low_threshold: float,
    allow_low_quality_matches: bool = False,
    crowd: Any = None,
) -> Match:
    """Matches boxes with objects by IoU (Ren et al. 2015, arXiv:1506.01497, section 3.1.2).

    Runs traced or eagerly.

    Args:
      boxes: Anchors or proposals, float32 [A, 4], the same for all images, or [n, A, 4]. Padding
        is neither positive nor negative.
      truth: Boxes of the objects, float32 [n, G, 4], padded with empty boxes.
      high_threshold: IoU from which on a box is positive.
      low_threshold: IoU below which a box is negative.
      allow_low_quality_matches: Whether the boxes with the highest IoU for an object are positive
        even below `high_threshold`, so that every object is matched.
      crowd: Which objects are crowd regions, bool [n, G], or None. No box is matched with a crowd
        region, and a box with more than half of its area in one is not negative.

    Returns:
      The matches.

    Raises:
      ValueError: `low_threshold` is above `high_threshold`.
    """
    if low_threshold > high_threshold:
        raise ValueError(
            f"low_threshold={low_threshold} must not be above high_threshold={high_threshold}."
        )
    boxes, truth = tf.convert_to_tensor(boxes), tf.convert_to_tensor(truth)
    if boxes.shape.rank == 2:
        boxes = tf.broadcast_to(boxes, tf.concat([tf.shape(truth)[:1], tf.shape(boxes)], 0))
    objects = truth
    if crowd is not None:
        objects = tf.where(tf.expand_dims(crowd, -1), 0.0, truth)
    quality = iou(boxes, objects)  # [n, A, G]
    index = tf.argmax(quality, -1, tf.int32)
    highest = tf.reduce_max(quality, -1)
    filled = area(boxes) > 0
    positive = (highest >= high_threshold) & (highest > 0)
    if allow_low_quality_matches:
        highest_of_object = tf.reduce_max(quality, 1, keepdims=True)
        is_best = (quality == highest_of_object) & (quality > 0)
        index = tf.where(
            tf.reduce_any(is_best, -1),
            tf.argmax(tf.where(is_best, quality, -1.0), -1, tf.int32),
            index,
        )
        positive |= tf.reduce_any(is_best, -1)
    negative = filled & tf.logical_not(positive) & (highest < low_threshold)
    if crowd is not None:
        regions = tf.where(tf.expand_dims(crowd, -1), truth, 0.0)
        inside = tf.reduce_max(intersection(boxes, regions), -1)
        negative &= inside <= 0.5 * area(boxes)
    return Match(index, positive, negative)
