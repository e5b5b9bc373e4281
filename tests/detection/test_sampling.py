"""Which boxes are sampled; the noise depends only on example and step."""

import numpy as np
import pytest
import tensorflow as tf

from tfloss.detection.sampling import noise, sample


def _sample(kinds, count, positives, order=None):
    kinds = np.array([list(kinds)])
    draw = np.linspace(0.9, 0.1, kinds.size)[None] if order is None else np.array([order])
    found = sample(
        tf.constant(kinds == "+"),
        tf.constant(kinds == "-"),
        num_samples=count,
        max_positives=positives,
        priority=tf.constant(draw, tf.float32),
    )
    return found.index.numpy()[0], found.positive.numpy()[0], found.valid.numpy()[0]


def test_positives_come_first_and_negatives_fill_up():
    index, positive, valid = _sample("-+.-+-+", 5, 2)
    np.testing.assert_array_equal(index, [1, 4, 0, 3, 5])
    np.testing.assert_array_equal(positive, [1, 1, 0, 0, 0])
    assert valid.all()


def test_too_few_positives_give_more_negatives():
    index, positive, valid = _sample("--+---", 4, 2)
    np.testing.assert_array_equal(index, [2, 0, 1, 3])
    np.testing.assert_array_equal(positive, [1, 0, 0, 0])
    assert valid.all()


def test_too_few_of_both_give_padding():
    _, positive, valid = _sample("..+..-.", 5, 2)
    np.testing.assert_array_equal(positive, [1, 0, 0, 0, 0])
    np.testing.assert_array_equal(valid, [1, 1, 0, 0, 0])


def test_more_samples_than_boxes():
    index, positive, valid = _sample("+-", 10, 5)
    np.testing.assert_array_equal((index, positive, valid), [[0, 1], [1, 0], [1, 1]])


def test_the_highest_priority_is_sampled():
    index, _, _ = _sample("++++--", 3, 2, order=[0.1, 0.9, 0.0, 0.5, 0.0, 0.2])
    np.testing.assert_array_equal(index, [1, 3, 5])


def test_noise_is_uniform_and_independent_between_examples_and_boxes():
    draw = noise(tf.range(200, dtype=tf.int64), 7, 500).numpy()
    assert draw.min() >= 0 and draw.max() < 1
    counts = np.histogram(draw, 50, (0, 1))[0]
    expected = draw.size / 50
    assert ((counts - expected) ** 2 / expected).sum() < 85.4  # chi-square, 49 degrees, p = 0.001
    rows = np.corrcoef(draw)[np.triu_indices(200, 1)]
    columns = np.corrcoef(draw.T)[np.triu_indices(500, 1)]
    for found, size in ((rows, 500), (columns, 200)):
        assert abs(found.std() * np.sqrt(size) - 1) < 0.05 and np.abs(found).max() < 6 / size**0.5
    later = [noise(tf.range(200, dtype=tf.int64), step, 500).numpy() for step in (8, 2**33 + 7)]
    for other in later:
        assert abs(np.corrcoef(draw.ravel(), other.ravel())[0, 1]) < 4 / draw.size**0.5


def test_noise_depends_only_on_example_and_step():
    ids = tf.constant([5, 2**40 + 5, -1, 0], tf.int64)
    draw = noise(ids, 3, 10).numpy()
    np.testing.assert_array_equal(noise(ids[1:2], 3, 10)[0], draw[1])
    np.testing.assert_array_equal(noise(ids, tf.constant(3, tf.int64), 20)[:, :10], draw)
    assert len(np.unique(draw)) == 40
    assert not np.array_equal(noise(ids, 4, 10), draw)


@pytest.mark.parametrize("jit", [False, True])
def test_sampling_gives_the_same_with_and_without_xla(jit):
    @tf.function(jit_compile=jit)
    def draw(step):
        ids = tf.constant([11, 12], tf.int64)
        kind = noise(ids, 2, 100)
        return sample(
            kind > 0.7, kind < 0.4, num_samples=16, max_positives=4, priority=noise(ids, step, 100)
        ).index

    np.testing.assert_array_equal(
        draw(tf.constant(9, tf.int64)), draw.python_function(tf.constant(9, tf.int64))
    )
