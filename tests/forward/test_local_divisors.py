"""Losses that are divided by a number of one replica's examples are found, and nothing else."""

import keras
import pytest
import tensorflow as tf

import tfloss
from tests.forward.test_batch_sums import OTHERS as MEANS
from tfloss.forward.context import forward_context
from tfloss.forward.local_divisors import local_divisors

EXAMPLES, FEATURES = 8, 3
WEIGHT = tf.Variable(tf.ones([FEATURES, 4]))
SIZES = pytest.mark.parametrize("size", [EXAMPLES, None])


def labels(x):
    return tf.cast(tf.tile(x[:, :1], [1, 4]) > 0, tf.float32)


def classes(x):
    return tf.cast(x[:, 0], tf.int32)


def each(p):
    """One value for each example."""
    return tf.reduce_mean(p**2, 1)


def with_mask(p, x):
    p = tf.identity(p)
    p._keras_mask = x[:, 0] > 0
    return keras.losses.MeanSquaredError()(labels(x), p)


def all_reduced(values):
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)


def found(make, size, weight=0.5):
    """What is found in a loss, given predictions [n, 4] of a batch x [n, 3]."""
    texts = []

    @tf.function
    def trace(x):
        with forward_context(tf.constant(0, tf.int64), False, weight):
            loss = tf.cast(make(tf.matmul(x, WEIGHT), x), tf.float32)
        texts.extend(local_divisors({"name": loss}, {"x": x}, size, weight))

    trace.get_concrete_function(tf.TensorSpec([size, FEATURES]))
    return texts


LOCAL = {
    "Dice": lambda p, x: keras.losses.Dice()(labels(x), p),
    "function": lambda p, x: keras.losses.dice(labels(x), p),
    "over classes": lambda p, x: keras.losses.Dice(axis=(0,))(labels(x), p),
    "Tversky": lambda p, x: 0.3 * keras.losses.Tversky()(labels(x), p) + tf.reduce_mean(p),
    "mask": with_mask,
    "ignore_class": lambda p, x: keras.losses.SparseCategoricalCrossentropy(ignore_class=0)(
        classes(x), p
    ),
    "weights": lambda p, x: keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")(
        labels(x), p, x[:, 0]
    ),
    "by hand": lambda p, x: tf.reduce_sum(each(p) * x[:, 0]) / tf.reduce_sum(x[:, 0]),
    "no NaN": lambda p, x: tf.math.divide_no_nan(
        tf.reduce_sum(each(p)), tf.cast(tf.math.count_nonzero(x), tf.float32)
    ),
    "at least 1": lambda p, x: tf.reduce_sum(each(p)) / tf.maximum(tf.reduce_sum(x), 1.0),
    "weights of mean 1": lambda p, x: tf.reduce_mean(each(p) * (x[:, 0] / tf.reduce_mean(x[:, 0]))),
    "where there are some": lambda p, x: tf.where(
        tf.reduce_sum(x) > 0, tf.reduce_sum(p) / tf.reduce_sum(x), 0.0
    ),
    "flattened": lambda p, x: tf.reduce_sum(p) / tf.reduce_sum(tf.reshape(p, [-1])),
}
OTHERS = {
    **{name: make for name, make in MEANS.items() if name != "by a count"},
    "Dice of each example": lambda p, x: keras.losses.Dice(axis=(1,))(labels(x), p),
    "Dice of the global batch": lambda p, x: keras.losses.Dice()(
        tfloss.cross_replica_concat(labels(x)), tfloss.cross_replica_concat(p)
    ),
    "global_mean": lambda p, x: tfloss.global_mean(each(p), x[:, 0]),
    "all_reduce": lambda p, x: 2 * tf.reduce_sum(each(p)) / all_reduced(tf.reduce_sum(x)),
    "by an own count": lambda p, x: tf.reduce_mean(tf.reduce_sum(p, 1) / tf.reduce_sum(x, 1)),
    "by weights": lambda p, x: tf.reduce_mean(each(p)) / tf.reduce_sum(WEIGHT),
    "normalised": lambda p, x: tf.reduce_mean(tf.math.l2_normalize(p, 1)),
    "standardised": lambda p, x: tf.reduce_mean(
        tf.nn.batch_normalization(p, *tf.nn.moments(p, [0]), None, None, 1e-3)
    ),
    "cross-entropy": lambda p, x: keras.losses.SparseCategoricalCrossentropy(from_logits=True)(
        classes(x), p
    ),
    "softmax": lambda p, x: keras.losses.CategoricalCrossentropy()(labels(x), tf.nn.softmax(p)),
}


@SIZES
@pytest.mark.parametrize("kind", LOCAL)
def test_divisions_by_a_number_of_one_replicas_examples_are_found(kind, size):
    (one,) = found(LOCAL[kind], size)
    assert __file__ in one.line
    assert "Loss 'name' is divided by a number" in str(one) and "tfloss.global_mean" in str(one)


@SIZES
@pytest.mark.parametrize("kind", OTHERS)
def test_nothing_else_is_found(kind, size, replicas):
    strategy = replicas(2)
    results = []

    def replica(x):
        with forward_context(tf.constant(0, tf.int64), False, 0.5):
            loss = tf.cast(OTHERS[kind](tf.matmul(x, WEIGHT), x), tf.float32)
        results.extend(local_divisors({"name": loss}, {"x": x}, size, 0.5))

    run = tf.function(lambda x: strategy.run(replica, (x,)))
    run.get_concrete_function(tf.TensorSpec([size, FEATURES]))
    assert results == []


def test_a_step_of_one_part_may_divide():
    assert found(LOCAL["Dice"], EXAMPLES, weight=1.0) == []
