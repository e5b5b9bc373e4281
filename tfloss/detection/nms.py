"""Non-maximum suppression (NMS) with static shapes, for proposals and detections. Traced."""

from typing import Any

import tensorflow as tf


def propose(
    boxes: Any,
    scores: Any,
    *,
    pre_nms_top_k: int,
    post_nms_top_k: int,
    iou_threshold: float,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Selects region proposals by class-agnostic NMS (Ren et al. 2015, arXiv:1506.01497).

    Runs traced or eagerly.

    Args:
      boxes: Boxes, float32 [n, A, 4].
      scores: Scores, float32 [n, A]. A score of -inf excludes a box.
      pre_nms_top_k: Number of boxes with the highest scores that enter NMS.
      post_nms_top_k: Number of boxes returned for each image.
      iou_threshold: IoU above which the box with the lower score is dropped.

    Returns:
      boxes: Boxes, float32 [n, post_nms_top_k, 4], by descending score, padded with 0.
      scores: Scores, float32 [n, post_nms_top_k], padded with -inf.
    """
    scores, index = tf.math.top_k(scores, min(pre_nms_top_k, scores.shape[-1]))
    boxes = tf.gather(boxes, index, batch_dims=1)
    kept, filled = _suppress(boxes, scores, post_nms_top_k, iou_threshold)
    boxes = tf.where(tf.expand_dims(filled, -1), tf.gather(boxes, kept, batch_dims=1), 0.0)
    return boxes, tf.where(filled, tf.gather(scores, kept, batch_dims=1), -float("inf"))


def detect(
    boxes: Any,
    scores: Any,
    *,
    max_detections: int,
    score_threshold: float,
    iou_threshold: float,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Selects the final detections by NMS within each class.

    Runs traced or eagerly.

    Args:
      boxes: Boxes, float32 [n, R, 4], shared by all classes.
      scores: Probability of each class, float32 [n, R, C].
      max_detections: Maximum number of detections for each image, over all classes.
      score_threshold: Minimum score of a detection.
      iou_threshold: IoU above which the box with the lower score of the same class is dropped.

    Returns:
      boxes: Boxes, float32 [n, max_detections, 4], by descending score, padded with 0.
      scores: Scores, float32 [n, max_detections], padded with 0.
      labels: Class indices, int32 [n, max_detections], padded with 0.
    """
    scores = tf.convert_to_tensor(scores)
    classes = scores.shape[-1]
    flat = tf.reshape(scores, [-1, scores.shape[1] * classes])
    candidates = min(scores.shape[1] * classes, max(10 * max_detections, 200))
    best, index = tf.math.top_k(tf.where(flat >= score_threshold, flat, -float("inf")), candidates)
    labels = index % classes
    boxes = tf.gather(boxes, index // classes, batch_dims=1)
    # Each class is moved to its own region of the plane, so that one NMS keeps classes apart.
    extent = tf.reduce_max(tf.abs(boxes)) + 1.0
    moved = boxes + 2.0 * extent * tf.expand_dims(tf.cast(labels, tf.float32), -1)
    kept, filled = _suppress(moved, best, max_detections, iou_threshold)

    def take(values: Any, padding: Any) -> tf.Tensor:
        taken = tf.gather(values, kept, batch_dims=1)
        where = filled if taken.shape.rank == 2 else tf.expand_dims(filled, -1)
        return tf.where(where, taken, tf.cast(padding, taken.dtype))

    return take(boxes, 0.0), take(best, 0.0), take(labels, 0)


def _suppress(
    boxes: tf.Tensor, scores: tf.Tensor, count: int, iou_threshold: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Suppresses boxes that are sorted by descending score.

    Returns:
      index: Indices of the kept boxes, int32 [n, count].
      filled: Which of the indices hold a box, bool [n, count]. The others are padding.
    """
    # non_max_suppression_padded needs a score threshold above -inf, and takes empty boxes for
    # padding.
    included = scores > -float("inf")
    index, number = tf.image.non_max_suppression_padded(
        tf.where(tf.expand_dims(included, -1), boxes, 0.0),
        tf.where(included, scores, tf.float32.min),
        count,
        iou_threshold=iou_threshold,
        score_threshold=tf.float32.min,
        pad_to_max_output_size=True,
        sorted_input=True,
        canonicalized_coordinates=True,
    )
    index = tf.reshape(index, [-1, count])
    filled = tf.range(count) < number[:, tf.newaxis]
    return index, filled & tf.gather(included, index, batch_dims=1)
