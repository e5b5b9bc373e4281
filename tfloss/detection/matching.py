"""Matching: which true object an anchor or proposal stands for. Traced or eager."""

import dataclasses
from typing import Any

import tensorflow as tf

from tfloss.detection.boxes import area, intersection, iou


@dataclasses.dataclass(frozen=True)
class Match:
    """What `match` found for n images, A boxes each.

    Attributes:
      index: int32 [n, A], the object that a box stands for (or is nearest to). Always a valid
        index, whether the box is positive or not: `tf.gather(truth, index, batch_dims=1)`.
      positive: bool [n, A].
      negative: bool [n, A]. What is neither takes part in no loss.
    """

    index: tf.Tensor
    positive: tf.Tensor
    negative: tf.Tensor


def match(
    boxes: Any,
    truth: Any,
    *,
    positive: float,
    negative: float,
    best: bool = False,
    crowd: Any = None,
) -> Match:
    """Matches boxes with true objects by their IoU (Ren et al. 2015, arXiv:1506.01497, 3.1.2).

    Args:
      boxes: [A, 4], the same for all images, or [n, A, 4]. An empty one is neither positive nor
        negative.
      truth: [n, G, 4], padded with empty boxes.
      positive: from this IoU on a box is positive.
      negative: below this IoU a box is negative.
      best: for each object the boxes of highest IoU are positive, however low that is, so that
        no object is left out.
      crowd: bool [n, G] or None: regions that hold many objects. None is matched with them, and a
        box that lies in one by more than half is not negative.

    Raises:
      ValueError: negative > positive.
    """
    if negative > positive:
        raise ValueError(f"negative={negative} must not be above positive={positive}.")
    boxes, truth = tf.convert_to_tensor(boxes), tf.convert_to_tensor(truth)
    if boxes.shape.rank == 2:
        boxes = tf.broadcast_to(boxes, tf.concat([tf.shape(truth)[:1], tf.shape(boxes)], 0))
    objects = truth
    if crowd is not None:
        objects = tf.where(tf.expand_dims(crowd, -1), 0.0, truth)
    overlap = iou(boxes, objects)  # [n, A, G]
    index = tf.argmax(overlap, -1, tf.int32)
    highest = tf.reduce_max(overlap, -1)
    filled = area(boxes) > 0
    is_positive = (highest >= positive) & (highest > 0)
    if best:
        of_object = tf.reduce_max(overlap, 1, keepdims=True)
        is_best = (overlap == of_object) & (overlap > 0)
        index = tf.where(
            tf.reduce_any(is_best, -1),
            tf.argmax(tf.where(is_best, overlap, -1.0), -1, tf.int32),
            index,
        )
        is_positive |= tf.reduce_any(is_best, -1)
    is_negative = filled & tf.logical_not(is_positive) & (highest < negative)
    if crowd is not None:
        regions = tf.where(tf.expand_dims(crowd, -1), truth, 0.0)
        inside = tf.reduce_max(intersection(boxes, regions), -1)
        is_negative &= inside <= 0.5 * area(boxes)
    return Match(index, is_positive, is_negative)
