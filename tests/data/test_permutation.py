"""The shuffle is a permutation each epoch, and all permutations are equally likely."""

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tfloss.data.permutation import _hashed, _mixed, seeds, shuffled


def epochs(length: int, number: int, seed: int = 0) -> np.ndarray:
    """[number, length]: the order of each epoch."""
    positions = tf.range(length * number, dtype=tf.int64)
    return shuffled(positions, length, seed).numpy().reshape(number, length)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 10, 64, 101, 1437])
@pytest.mark.parametrize("seed", [0, 1, -1, 2**80])
def test_every_example_comes_once_an_epoch(length: int, seed: int):
    order = epochs(length, 20, seed)
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(length), (20, 1)))


def test_epochs_and_seeds_differ():
    orders = np.concatenate([epochs(1437, 10, seed) for seed in (0, 1, 2, -1)])
    assert len({order.tobytes() for order in orders}) == 40


def test_the_order_never_changes():
    """A checkpoint's position means the same examples for ever."""
    assert epochs(10, 2, 7).tolist() == [
        [6, 1, 5, 8, 9, 2, 4, 0, 3, 7],
        [8, 1, 7, 2, 6, 0, 5, 4, 9, 3],
    ]
    assert seeds(tf.constant([0, 1], tf.int64), 7).numpy().tolist() == [
        [-71931435, -1963247971],
        [914990384, 1769713629],
    ]


def test_a_position_is_computed_independently_of_others():
    whole = shuffled(tf.range(1000, dtype=tf.int64), 37, 5).numpy()
    for start in (0, 1, 36, 37, 500):
        part = shuffled(tf.range(start, 1000, 7, dtype=tf.int64), 37, 5).numpy()
        np.testing.assert_array_equal(part, whole[start::7])
    far = 10**18 - 10**18 % 37
    found = shuffled(tf.range(far, far + 37, dtype=tf.int64), 37, 5).numpy()
    assert sorted(found) == list(range(37))


def test_eager_and_traced_are_the_same():
    positions = tf.range(100, dtype=tf.int64)
    for length in (3, 37, 1000):
        traced = tf.function(lambda x, n=length: (shuffled(x, n, 3), seeds(x, 3)))(positions)
        np.testing.assert_array_equal(traced[0], shuffled(positions, length, 3))
        np.testing.assert_array_equal(traced[1], seeds(positions, 3))


@pytest.mark.parametrize("length", [2, 3, 4, 5])
def test_all_permutations_are_equally_likely(length: int):
    number = 24_000
    orders = map(tuple, epochs(length, number).tolist())
    seen = dict.fromkeys(itertools.permutations(range(length)), 0)
    for order in orders:
        seen[order] += 1
    assert len(seen) == math.factorial(length)
    assert stats.chisquare(list(seen.values())).pvalue > 1e-3


@pytest.mark.parametrize("length, number", [(10, 20_000), (1437, 600)])
def test_every_position_has_every_example_equally_often(length: int, number: int):
    order = epochs(length, number)
    # Twenty places with ten groups of examples each, and how far apart neighbours are.
    group = order * 10 // length
    sizes = np.bincount(np.arange(length) * 10 // length) / length
    pvalues = [
        stats.chisquare(np.bincount(group[:, place], minlength=10), sizes * number).pvalue
        for place in np.linspace(0, length - 1, 20).astype(int)
    ]
    apart = np.bincount((np.diff(order, axis=1) % length).ravel(), minlength=length)[1:]
    pvalues.append(stats.chisquare(apart).pvalue)
    assert min(pvalues) > 1e-3 / len(pvalues) * 2
    if length == 10:  # pairs of places: 90 ordered pairs of examples
        pairs = np.bincount(order[:, 2] * 10 + order[:, 7], minlength=100).reshape(10, 10)
        assert stats.chisquare(pairs[~np.eye(10, dtype=bool)]).pvalue > 1e-3


def test_epochs_are_independent():
    order = epochs(10, 20_000)
    table = np.bincount(order[:-1, 0] * 10 + order[1:, 0], minlength=100)
    assert stats.chisquare(table).pvalue > 1e-3
    # How many examples keep their place is what it is for random permutations: of the 10!, those
    # that keep k of 10 are C(10, k) times the derangements of the others.
    derangements = [1, 0, 1, 2, 9, 44, 265, 1854, 14833, 133496, 1334961]
    kept = np.bincount((order[1:] == order[:-1]).sum(axis=1), minlength=11)
    chances = np.array([math.comb(10, k) * derangements[10 - k] for k in range(11)])
    chances = chances / math.factorial(10)
    kept, chances = np.append(kept[:5], kept[5:].sum()), np.append(chances[:5], chances[5:].sum())
    assert stats.chisquare(kept, chances * kept.sum()).pvalue > 1e-3


@pytest.mark.upstream
def test_index_shuffle_repeats_after_256_seeds():
    """Why there is a permutation of our own. When this fails, look whether it can go."""
    inside, last = tf.range(1437, dtype=tf.int64), tf.constant(1436, tf.int64)

    def order(epoch: tf.Tensor) -> tf.Tensor:
        return tf.random.experimental.index_shuffle(inside, tf.stack([7, epoch]), last)

    orders = tf.map_fn(order, tf.range(300), fn_output_signature=tf.int64).numpy()
    assert len({one.tobytes() for one in orders[:256]}) == 256
    np.testing.assert_array_equal(orders[256:], orders[: 300 - 256])


def test_seeds_depend_on_the_position_and_all_differ():
    found = seeds(tf.range(100_000, dtype=tf.int64), 3)
    assert found.shape == (100_000, 2) and found.dtype == tf.int32
    assert len(np.unique(found.numpy(), axis=0)) == 100_000
    np.testing.assert_array_equal(seeds(tf.constant(70, tf.int64), 3), found[70])
    other = seeds(tf.range(100_000, dtype=tf.int64), 4).numpy()
    assert not np.any(np.all(other == found.numpy(), axis=1))
    # The numbers drawn with them are uniform.
    first = tf.map_fn(lambda seed: tf.random.stateless_uniform([], seed), found[:2_000], tf.float32)
    assert stats.kstest(first.numpy(), "uniform").pvalue > 1e-3


def test_the_hash_in_python_is_that_of_the_graph():
    for value in (0, 1, 12345, 2**63, 2**64 - 1):
        assert int(_mixed(tf.constant(value, tf.uint64))) == _hashed(value)
