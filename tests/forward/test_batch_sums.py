"""Sums over the examples of one replica are found, and nothing else."""

import keras
import pytest
import tensorflow as tf

import tfloss
from tfloss.forward.batch_sums import batch_sums
from tfloss.forward.context import forward_context

EXAMPLES, FEATURES = 8, 3
WEIGHT = tf.Variable(tf.ones([FEATURES, 4]))
SIZES = pytest.mark.parametrize("size", [EXAMPLES, None])


def each(p):
    """One value for each example."""
    return tf.reduce_mean(p**2, 1)


def keras_loss(reduction):
    loss = keras.losses.MeanSquaredError(reduction=reduction)
    return lambda p, x: loss(tf.zeros_like(p), p)


def ctc(function, p, **options):
    number, logits = tf.shape(p)[0], tf.tile(p[:, None, :], [1, 6, 1])
    labels = tf.ones([number, 2], tf.int32)
    return tf.reduce_sum(
        function(labels, logits, tf.fill([number], 2), tf.fill([number], 6), **options)
    )


def found(make, size, weight=0.5):
    """What is found in a loss, given predictions [n, 4] of a batch x [n, 3]."""
    texts = []

    @tf.function
    def trace(x):
        with forward_context(tf.constant(0, tf.int64), False, weight):
            loss = tf.cast(make(tf.matmul(x, WEIGHT), x), tf.float32)
        texts.extend(batch_sums({"name": loss}, {"x": x}, size, weight))

    trace.get_concrete_function(tf.TensorSpec([size, FEATURES]))
    return texts


SUMS = {
    "sum": lambda p, x: tf.reduce_sum(each(p)),
    "of all values": lambda p, x: tf.reduce_sum(p**2),
    "Keras": keras_loss("sum"),
    "keras.ops": lambda p, x: keras.ops.sum(keras.ops.mean(p**2, axis=-1)),
    "weighted": lambda p, x: 0.01 * tf.reduce_sum(each(p)) + tf.reduce_mean(p),
    "add_n": lambda p, x: tf.add_n([tf.reduce_mean(p), tf.reduce_sum(each(p))]),
    "l2_loss": lambda p, x: 1e-3 * tf.nn.l2_loss(p),
    "by feature": lambda p, x: tf.reduce_mean(tf.reduce_sum(p**2, 0)),
    "masked": lambda p, x: tf.reduce_sum(tf.boolean_mask(each(p), each(p) > 1)),
    "ctc": lambda p, x: ctc(tf.nn.ctc_loss, p, logits_time_major=False, blank_index=0),
    "Keras ctc": lambda p, x: ctc(keras.ops.ctc_loss, p),
}
OTHERS = {
    "mean": lambda p, x: tf.reduce_mean(each(p)),
    "Keras": keras_loss("sum_over_batch_size"),
    "global_sum": lambda p, x: 3.0 * tfloss.global_sum(each(p)),
    "global_mean": lambda p, x: tfloss.global_mean(each(p)),
    "by the local size": lambda p, x: tf.reduce_sum(each(p)) / tf.cast(len_of(p), tf.float32),
    "by all values": lambda p, x: tf.reduce_sum(p**2) / tf.cast(tf.size(p), tf.float32),
    "by a constant local size": lambda p, x: tf.reduce_sum(each(p)) / EXAMPLES,
    "by a count": lambda p, x: tf.reduce_sum(each(p)) / tf.reduce_sum(x),
    "of weights": lambda p, x: tf.nn.l2_loss(WEIGHT) + tf.reduce_sum(WEIGHT**2),
    "over features": lambda p, x: tf.reduce_mean(tf.reduce_sum(p**2, 1)),
    "of means": lambda p, x: tf.reduce_sum(tf.reduce_mean(p, 0) ** 2),
    "not linear": lambda p, x: tf.sqrt(tf.reduce_sum(p**2)),
}


def len_of(p):
    return tf.shape(p)[0]


@SIZES
@pytest.mark.parametrize("kind", SUMS)
def test_sums_are_found_with_their_line(kind, size):
    (one,) = found(SUMS[kind], size)
    assert not one.by_global_size and __file__ in one.line
    assert "Loss 'name' is a sum" in str(one) and "tfloss.global_sum(x)" in str(one)


@SIZES
@pytest.mark.parametrize("kind", OTHERS)
def test_nothing_else_is_found(kind, size):
    assert found(OTHERS[kind], size) == []


def test_a_sum_divided_by_the_size_of_the_global_batch_is_found():
    def by_constant(p, x):
        return tf.reduce_sum(each(p)) / (2 * EXAMPLES)

    (one,) = found(by_constant, EXAMPLES)
    assert one.by_global_size and "divided twice" in str(one)
    # The size of a batch that is not static may be anything.
    assert found(by_constant, None) == []
    (one,) = found(
        lambda p, x: tf.nn.compute_average_loss(each(p), global_batch_size=2 * EXAMPLES), EXAMPLES
    )
    assert one.by_global_size


def test_the_default_of_compute_average_loss_is_found(replicas):
    with replicas(2).scope():  # it multiplies by the number of replicas
        strategy = tf.distribute.get_strategy()
    for size in (EXAMPLES, None):
        results = []

        def replica(x, size=size, results=results):
            loss = tf.nn.compute_average_loss(each(tf.matmul(x, WEIGHT)))
            results.extend(batch_sums({"name": loss}, x, size, 0.5))

        run = tf.function(lambda x, replica=replica: strategy.run(replica, (x,)))
        run.get_concrete_function(tf.TensorSpec([size, FEATURES]))
        assert [one.by_global_size for one in results] == [True, True]


def test_the_only_part_of_a_step_may_sum():
    assert found(SUMS["sum"], EXAMPLES, weight=1.0) == []
