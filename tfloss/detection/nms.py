"""Non-maximum suppression with static shapes, for proposals and for detections. Traced."""

from typing import Any

import tensorflow as tf


def propose(
    boxes: Any, scores: Any, count: int, *, considered: int, overlap: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """The best boxes that don't overlap each other, whatever their class.

    Args:
      boxes: [n, A, 4].
      scores: [n, A]; -inf keeps a box out.
      count: how many boxes are wanted.
      considered: how many of the highest scores are looked at.
      overlap: of two boxes whose IoU is above this the lower one is dropped.

    Returns:
      boxes [n, count, 4] and scores [n, count], by falling score. Where there are fewer, the boxes
      are 0 and the scores are -inf.
    """
    scores, index = tf.math.top_k(scores, min(considered, scores.shape[-1]))
    boxes = tf.gather(boxes, index, batch_dims=1)
    kept, filled = _suppress(boxes, scores, count, overlap)
    boxes = tf.where(tf.expand_dims(filled, -1), tf.gather(boxes, kept, batch_dims=1), 0.0)
    return boxes, tf.where(filled, tf.gather(scores, kept, batch_dims=1), -float("inf"))


def detect(
    boxes: Any, scores: Any, count: int, *, least: float, overlap: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The final detections: boxes of the same class don't overlap each other.

    Args:
      boxes: [n, R, 4], shared by all classes.
      scores: [n, R, C] probabilities.
      count: how many detections are kept, the best of all classes together.
      least: a lower score is no detection.
      overlap: as in `propose`, within a class.

    Returns:
      boxes [n, count, 4], scores [n, count], labels int32 [n, count] in [0, C), by falling score.
      Padding has score 0, an empty box and label 0.
    """
    scores = tf.convert_to_tensor(scores)
    classes = scores.shape[-1]
    each = tf.reshape(scores, [-1, scores.shape[1] * classes])
    considered = min(scores.shape[1] * classes, max(10 * count, 200))
    best, index = tf.math.top_k(tf.where(each >= least, each, -float("inf")), considered)
    labels = index % classes
    boxes = tf.gather(boxes, index // classes, batch_dims=1)
    # Classes side by side: boxes of different ones never meet.
    far = tf.reduce_max(tf.abs(boxes)) + 1.0
    apart = boxes + 2.0 * far * tf.expand_dims(tf.cast(labels, tf.float32), -1)
    kept, filled = _suppress(apart, best, count, overlap)

    def take(values: Any, padding: Any) -> tf.Tensor:
        taken = tf.gather(values, kept, batch_dims=1)
        where = filled if taken.shape.rank == 2 else tf.expand_dims(filled, -1)
        return tf.where(where, taken, tf.cast(padding, taken.dtype))

    return take(boxes, 0.0), take(best, 0.0), take(labels, 0)


def _suppress(boxes, scores, count: int, overlap: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Which of the boxes (sorted by falling score) stay: indices [n, count], and which are any."""
    # TensorFlow's takes a score threshold above -inf, and empty boxes for no boxes.
    there = scores > -float("inf")
    index, number = tf.image.non_max_suppression_padded(
        tf.where(tf.expand_dims(there, -1), boxes, 0.0),
        tf.where(there, scores, tf.float32.min),
        count,
        iou_threshold=overlap,
        score_threshold=tf.float32.min,
        pad_to_max_output_size=True,
        sorted_input=True,
        canonicalized_coordinates=True,
    )
    index = tf.reshape(index, [-1, count])
    filled = tf.range(count) < number[:, tf.newaxis]
    return index, filled & tf.gather(there, index, batch_dims=1)
