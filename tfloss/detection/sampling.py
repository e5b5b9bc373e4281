"""Sampling: which positives and negatives take part in a loss. Traced or eager."""

import dataclasses
from typing import Any

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Sample:
    """What `sample` drew: `count` places for each of n images, positives first.

    Attributes:
      index: int32 [n, count], into what was sampled from; `tf.gather(x, index, batch_dims=1)`.
      positive: bool [n, count].
      drawn: bool [n, count], False where there were too few, and the index means nothing.
    """

    index: tf.Tensor
    positive: tf.Tensor
    drawn: tf.Tensor


def sample(positive: Any, negative: Any, count: int, *, positives: int, noise: Any) -> Sample:
    """Draws positives, at most so many, and fills the rest with negatives.

    Args:
      positive, negative: bool [n, A], disjoint.
      count: how many are drawn for each image.
      positives: at most so many of them are positive; they lie in the first so many places.
      noise: [n, A] in [0, 1): those of highest noise are drawn. See `noise`.
    """
    count = min(count, positive.shape[-1])
    positives = min(positives, count)
    least = tf.math.top_k(tf.where(positive, noise, -1.0), positives).values[:, -1:]
    kept = positive & (noise >= least)
    order = tf.where(kept, 2.0 + noise, tf.where(negative, noise, -1.0))
    values, index = tf.math.top_k(order, count)
    return Sample(index, values >= 2.0, values >= 0.0)


def noise(keys: Any, step: Any, count: int) -> tf.Tensor:
    """Uniform noise that depends on the example and the step, and on nothing else.

    So what is drawn for an image is the same on 1 and on 8 replicas, under XLA, and after a
    resume; there is no random state to keep. (A counter-based generator: MurmurHash3's 32-bit
    finaliser, by Austin Appleby, over the mixed counters. For sampling, not for cryptography.)

    Args:
      keys: integers [n], such as an image's id.
      step: an integer scalar, such as `tfloss.current_step()`; give each use of the same step its
        own (`2 * step` and `2 * step + 1`).
      count: how many numbers an example gets.

    Returns:
      float32 [n, count] in [0, 1), multiples of 2^-24.
    """
    key = tf.bitcast(tf.cast(keys, tf.int64), tf.uint32)  # [n, 2]: low and high half
    now = tf.bitcast(tf.cast(step, tf.int64), tf.uint32)
    mixed = _mix(key[:, 0] ^ _mix(key[:, 1] ^ _mix(now[0] ^ _mix(now[1]))))
    place = tf.range(count, dtype=tf.int32)
    place = tf.bitcast(place, tf.uint32) * tf.constant(0x9E3779B1, tf.uint32)
    bits = _mix(_mix(mixed)[:, tf.newaxis] ^ place)
    whole = tf.bitcast(tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32)), tf.int32)
    return tf.cast(whole, tf.float32) * 2.0**-24


def _mix(bits: Any) -> Any:
    def shift(by: int) -> Any:
        return tf.bitwise.right_shift(bits, tf.constant(by, tf.uint32))

    bits = bits + tf.constant(0x9E3779B9, tf.uint32)  # so that 0 is not left as it is
    bits = (bits ^ shift(16)) * tf.constant(0x85EBCA6B, tf.uint32)
    bits = (bits ^ shift(13)) * tf.constant(0xC2B2AE35, tf.uint32)
    return bits ^ shift(16)
