"""Shuffling without a buffer: where each position of an endless order points, computed alone.

The swap-or-not shuffle (Hoang, Morris, Rogaway 2012) permutes 0 to n-1 for any n: a round pairs
each x with k - x (mod n) and swaps the two if a bit of a hash says so. Nothing is stored, so a
position in epoch 10^9 costs as much as one in the first.

`tf.random.experimental.index_shuffle` would be the obvious choice, but it has no more than 256
permutations of 1,437 numbers for the seeds (7, 0), (7, 1), (7, 2), ...: epochs would soon repeat.
"""

import numpy as np
import tensorflow as tf

# The chance that anything about a round's input is left to be seen shrinks by 0.625 or more a
# round (the second eigenvalue, for n = 4; 0.5 to 0.6 for others): 3e-7 after 32.
ROUNDS = 32

_WORD = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15  # of splitmix64, as are the two factors below
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


@tf.autograph.experimental.do_not_convert
def shuffled(positions: tf.Tensor, length: int, seed: int) -> tf.Tensor:
    """The example at each of these positions; every `length` positions all come once. Traced.

    Args:
      positions: int64 [m], m > 0, not negative, ascending.
      length: examples in an epoch, each of which has a permutation of its own.
      seed: any integer; what it gives doesn't depend on the machine.

    Returns:
      int64 [m], in [0, length).
    """
    epochs = positions // length
    first = epochs[0]
    # A table of keys, [rounds, epochs]: most of the time it has one or two columns.
    each = tf.cast(tf.range(first, epochs[-1] + 1), tf.uint64) + _word(_hashed(seed))
    # By numpy: eagerly and traced, TensorFlow makes different numbers of such a list.
    rounds = np.array([_GOLDEN * r & _WORD for r in range(ROUNDS)], np.uint64)
    table = _mixed(_mixed(each) + tf.constant(rounds[:, np.newaxis]))
    keys = tf.gather(table, epochs - first, axis=1)
    pivots = tf.gather(
        tf.cast(tf.math.floormod(table, _word(length)), tf.int64), epochs - first, axis=1
    )

    def swap(r: tf.Tensor, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        other = pivots[r] - x
        other = tf.where(other < 0, other + length, other)
        # Of a pair both see the same bit, that of its greater number.
        bits = (tf.cast(tf.maximum(x, other), tf.uint64) + keys[r]) * _word(_FACTORS[0])
        bits = _folded(bits, 32) * _word(_FACTORS[1])
        return r + 1, tf.where(tf.cast(bits, tf.int64) < 0, other, x)

    start = (tf.constant(0), positions - epochs * length)
    # Unrolled, it would run no faster and take four times as long to trace.
    return tf.while_loop(lambda r, _: r < ROUNDS, swap, start)[1]


@tf.autograph.experimental.do_not_convert
def seeds(positions: tf.Tensor, seed: int) -> tf.Tensor:
    """Seeds for `tf.random.stateless_*`, one a position: int64 [...] -> int32 [..., 2]. Traced."""
    # Another stream than the keys above, which are hashes of small numbers plus a constant too.
    key = _word(_hashed(seed) ^ _hashed(1))
    return tf.bitcast(_mixed(_mixed(tf.cast(positions, tf.uint64) + key)), tf.int32)


def _word(value: int) -> tf.Tensor:
    return tf.constant(value & _WORD, tf.uint64)


def _folded(x: tf.Tensor, bits: int) -> tf.Tensor:
    return tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.cast(bits, tf.uint64)))


def _mixed(x: tf.Tensor) -> tf.Tensor:
    """The finalizer of splitmix64: a bijection of 64 bits that looks random."""
    x = _folded(x + _word(_GOLDEN), 30) * _word(_FACTORS[0])
    return _folded(_folded(x, 27) * _word(_FACTORS[1]), 31)


def _hashed(seed: int) -> int:
    """The same, in Python: seeds 0 and 1 have nothing to do with each other."""
    x = (seed + _GOLDEN) & _WORD
    x = (x ^ x >> 30) * _FACTORS[0] & _WORD
    x = (x ^ x >> 27) * _FACTORS[1] & _WORD
    return x ^ x >> 31
