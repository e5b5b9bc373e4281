"""Samples the positive and negative boxes that take part in a loss. Traced or eager."""

import dataclasses
from typing import Any

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Sample:
    """The result of `sample` for n images: k sampled boxes each, positives first.

    Attributes:
      index: Indices of the sampled boxes, int32 [n, k], for `tf.gather(x, index, batch_dims=1)`.
      positive: Whether the sampled box is positive, bool [n, k].
      valid: False for padding, bool [n, k]. An image with too few boxes is padded with indices
        that have no meaning.
    """

    index: tf.Tensor
    positive: tf.Tensor
    valid: tf.Tensor


def sample(
    positive: Any, negative: Any, *, num_samples: int, max_positives: int, priority: Any
) -> Sample:
    """Samples up to `max_positives` positive boxes and fills up with negative ones.

    Runs traced or eagerly.

    Args:
      positive: Whether a box is positive, bool [n, A].
      negative: Whether a box is negative, bool [n, A]. No box may be both.
      num_samples: Number of boxes sampled for each image.
      max_positives: Maximum number of positive ones among them. Positives occupy the first places.
      priority: Priority of each box, float32 [n, A] in [0, 1). The boxes with the highest values
        are sampled. Use `noise` to sample uniformly.

    Returns:
      The sample, with k = min(num_samples, A).
    """
    num_samples = min(num_samples, positive.shape[-1])
    max_positives = min(max_positives, num_samples)
    lowest = tf.math.top_k(tf.where(positive, priority, -1.0), max_positives).values[:, -1:]
    kept = positive & (priority >= lowest)
    order = tf.where(kept, 2.0 + priority, tf.where(negative, priority, -1.0))
    values, index = tf.math.top_k(order, num_samples)
    return Sample(index, values >= 2.0, values >= 0.0)


def noise(example_ids: Any, step: Any, count: int) -> tf.Tensor:
    """Draws uniform noise that depends only on the example and the step.

    The sample of an image is therefore the same on 1 and on 8 replicas, under XLA, and after a
    resume, and no random state needs to be stored. This is a counter-based generator: the 32-bit
    finalizer of MurmurHash3 (Austin Appleby) over the mixed counters. It is good enough for
    sampling, but not for cryptography. Runs traced or eagerly.

    Args:
      example_ids: Ids of the examples, such as image ids, integers [n].
      step: Scalar integer, such as `tfloss.current_step()`. Two uses in one step need different
        values, such as `2 * step` and `2 * step + 1`.
      count: Number of values for each example.

    Returns:
      Noise, float32 [n, count] in [0, 1), multiples of 2^-24.
    """
    key = tf.bitcast(tf.cast(example_ids, tf.int64), tf.uint32)  # [n, 2]: low and high half
    now = tf.bitcast(tf.cast(step, tf.int64), tf.uint32)
    mixed = _mix(key[:, 0] ^ _mix(key[:, 1] ^ _mix(now[0] ^ _mix(now[1]))))
    counter = tf.range(count, dtype=tf.int32)
    counter = tf.bitcast(counter, tf.uint32) * tf.constant(0x9E3779B1, tf.uint32)
    bits = _mix(_mix(mixed)[:, tf.newaxis] ^ counter)
    mantissa = tf.bitcast(tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32)), tf.int32)
    return tf.cast(mantissa, tf.float32) * 2.0**-24


def _mix(bits: Any) -> Any:
    def shift(by: int) -> Any:
        return tf.bitwise.right_shift(bits, tf.constant(by, tf.uint32))

    bits = bits + tf.constant(0x9E3779B9, tf.uint32)  # 0 is a fixed point of the finalizer
    bits = (bits ^ shift(16)) * tf.constant(0x85EBCA6B, tf.uint32)
    bits = (bits ^ shift(13)) * tf.constant(0xC2B2AE35, tf.uint32)
    return bits ^ shift(16)
