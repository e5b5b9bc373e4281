"""Shuffling without a buffer: each position of an endless order is computed on its own. Traced.

The swap-or-not shuffle (Hoang, Morris and Rogaway, "An Enciphering Scheme Based on a Card
Shuffle", CRYPTO 2012) permutes 0 to n-1 for any n. Each round pairs each x with k - x (mod n), and
swaps the two if a bit of a hash is set. Nothing is stored, so a position in epoch 10^9 costs as
much as one in the first epoch.

`tf.random.experimental.index_shuffle` would be the obvious choice. But for the seeds (7, 0),
(7, 1), (7, 2), ... it has at most 256 permutations of 1,437 numbers, so epochs would soon repeat.
"""

import numpy as np
import tensorflow as tf

# Each round multiplies what remains visible of its input by at most 0.625: the second eigenvalue
# for n = 4; it is 0.5 to 0.6 for other n. 3e-7 remains after 32 rounds.
ROUNDS = 32

_WORD = 2**64 - 1
# Constants of splitmix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators",
# OOPSLA 2014).
_GOLDEN = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


@tf.autograph.experimental.do_not_convert
def shuffled(positions: tf.Tensor, length: int, seed: int) -> tf.Tensor:
    """Returns the index of the example at each position.

    Each epoch of `length` positions has its own permutation, and contains each example once.

    Args:
      positions: Ascending positions from 0 on, int64 [m], m > 0.
      length: Number of examples in an epoch.
      seed: Any integer. The result doesn't depend on the machine.

    Returns:
      Indices in [0, length), int64 [m].
    """
    epochs = positions // length
    first = epochs[0]
    # A table of keys, [rounds, epochs]. Usually it has one or two columns.
    each = tf.cast(tf.range(first, epochs[-1] + 1), tf.uint64) + _word(_hashed(seed))
    # As a numpy array: TensorFlow converts a list to different numbers eagerly and traced.
    rounds = np.array([_GOLDEN * r & _WORD for r in range(ROUNDS)], np.uint64)
    table = _mixed(_mixed(each) + tf.constant(rounds[:, np.newaxis]))
    keys = tf.gather(table, epochs - first, axis=1)
    pivots = tf.gather(
        tf.cast(tf.math.floormod(table, _word(length)), tf.int64), epochs - first, axis=1
    )

    def swap(r: tf.Tensor, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        other = pivots[r] - x
        other = tf.where(other < 0, other + length, other)
        # Both numbers of a pair use the same bit, that of the greater one.
        bits = (tf.cast(tf.maximum(x, other), tf.uint64) + keys[r]) * _word(_FACTORS[0])
        bits = _folded(bits, 32) * _word(_FACTORS[1])
        return r + 1, tf.where(tf.cast(bits, tf.int64) < 0, other, x)

    start = (tf.constant(0), positions - epochs * length)
    # Unrolling would not make it faster, and tracing would take four times as long.
    return tf.while_loop(lambda r, _: r < ROUNDS, swap, start)[1]


@tf.autograph.experimental.do_not_convert
def seeds(positions: tf.Tensor, seed: int) -> tf.Tensor:
    """Returns a seed for `tf.random.stateless_*` for each position.

    Args:
      positions: Positions, int64 [...].
      seed: Any integer.

    Returns:
      Seeds, int32 [..., 2].
    """
    # The keys above are hashes of small numbers plus a constant too. This is another constant.
    key = _word(_hashed(seed) ^ _hashed(1))
    return tf.bitcast(_mixed(_mixed(tf.cast(positions, tf.uint64) + key)), tf.int32)


def _word(value: int) -> tf.Tensor:
    return tf.constant(value & _WORD, tf.uint64)


def _folded(x: tf.Tensor, bits: int) -> tf.Tensor:
    return tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.cast(bits, tf.uint64)))


def _mixed(x: tf.Tensor) -> tf.Tensor:
    """Applies the finalizer of splitmix64, a bijection of 64 bits that looks random."""
    x = _folded(x + _word(_GOLDEN), 30) * _word(_FACTORS[0])
    return _folded(_folded(x, 27) * _word(_FACTORS[1]), 31)


def _hashed(seed: int) -> int:
    """Does the same in Python, so that seeds 0 and 1 give unrelated numbers."""
    x = (seed + _GOLDEN) & _WORD
    x = (x ^ x >> 30) * _FACTORS[0] & _WORD
    x = (x ^ x >> 27) * _FACTORS[1] & _WORD
    return x ^ x >> 31
