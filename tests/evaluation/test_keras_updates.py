"""Every example counts once in a Keras metric, or the metric is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfloss.errors import MetricError
from tfloss.evaluation.keras_updates import KerasUpdate
from tfloss.evaluation.metrics import metric

TRUTH = np.float32([0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0])
GUESS = np.float32([0.1, 0.9, 0.2, 0.6, 0.7, 0.3, 0.4])
BATCHES = [(TRUTH[:4], GUESS[:4]), (TRUTH[4:], GUESS[4:])]


def run(keras_metric, arguments=lambda batch, guess: (batch, guess), batches=BATCHES):
    """What an evaluation does with one metric."""
    update = KerasUpdate("m", metric(keras_metric, arguments))
    pairs = [tuple(map(tf.constant, pair)) for pair in batches]
    update.choose(*pairs[0])
    for pair in pairs:
        update(*pair)
    value = float(update.metric.result())
    update.check_sizes(*pairs)
    return value


def _each(error):
    return float(np.mean(error, dtype=np.float64))


@pytest.mark.parametrize(
    ("keras_metric", "expected"),
    [
        (keras.metrics.MeanAbsoluteError(), _each(abs(TRUTH - GUESS))),
        (keras.metrics.MeanSquaredError(), _each((TRUTH - GUESS) ** 2)),
        (keras.metrics.RootMeanSquaredError(), _each((TRUTH - GUESS) ** 2) ** 0.5),
        (keras.metrics.LogCoshError(), _each(np.log(np.cosh(TRUTH - GUESS)))),
        (keras.metrics.SquaredHinge(), _each(np.maximum(1 - (2 * TRUTH - 1) * GUESS, 0) ** 2)),
        (keras.metrics.BinaryCrossentropy(), _each(-np.log(1 - abs(TRUTH - GUESS)))),
        (keras.metrics.Poisson(), _each(GUESS - TRUTH * np.log(GUESS))),
        (keras.metrics.BinaryAccuracy(), 4 / 7),
        (keras.metrics.Precision(), 2 / 3),
        (keras.metrics.MeanMetricWrapper(lambda y, p: tf.reduce_mean(y * p, -1)), 2.2 / 7),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_vectors(keras_metric, expected):
    assert run(keras_metric) == pytest.approx(expected, rel=1e-5)


@pytest.mark.promise(40)
@pytest.mark.upstream
def test_keras_counts_batches_where_predictions_are_vectors():
    mae = keras.metrics.MeanAbsoluteError()
    mae.update_state(np.zeros(4), np.zeros(4))
    mae.update_state(np.zeros(3), np.full(3, 8.0))
    assert float(mae.result()) == 4.0  # and not 24 / 7


@pytest.mark.parametrize("by_name", [False, True])
def test_weights_of_vectors(by_name):
    def arguments(batch, guess):
        weights = 1.0 + batch
        if by_name:
            return {"y_true": batch, "y_pred": guess, "sample_weight": weights}
        return batch, guess, weights

    weights = 1 + TRUTH
    expected = (weights * abs(TRUTH - GUESS)).sum() / weights.sum()
    assert run(keras.metrics.MeanAbsoluteError(), arguments) == pytest.approx(expected)


def test_values_that_are_the_same_in_the_first_batch_deceive_nobody():
    batches = [(np.zeros(4, "f"), np.zeros(4, "f")), (np.zeros(3, "f"), np.full(3, 8, "f"))]
    assert run(keras.metrics.MeanAbsoluteError(), batches=batches) == pytest.approx(24 / 7)


def test_a_first_batch_of_one_example():
    batches = [(TRUTH[:1], GUESS[:1]), (TRUTH[1:], GUESS[1:])]
    found = run(keras.metrics.MeanSquaredError(), batches=batches)
    assert found == pytest.approx(_each((TRUTH - GUESS) ** 2))


class _MeanOfBatches(keras.metrics.Metric):
    """What users write: the mean over batches."""

    def __init__(self):
        super().__init__(name="own")
        self.total = self.add_variable((), "zeros")
        self.batches = self.add_variable((), "zeros")

    def update_state(self, y_true, y_pred):
        self.total.assign_add(tf.reduce_mean(abs(y_true - y_pred)))
        self.batches.assign_add(1.0)

    def result(self):
        return self.total / self.batches


def _columns(batch, guess):
    return tf.stack([batch, 1 - batch], 1), tf.stack([guess, 1 - guess], 1)


@pytest.mark.parametrize(
    ("keras_metric", "arguments"),
    [
        (_MeanOfBatches(), lambda b, p: (b, p)),
        (_MeanOfBatches(), lambda b, p: (b[:, None], p[:, None])),
        (keras.metrics.Mean(), lambda b, p: tf.reduce_mean(p)),
        (keras.metrics.CosineSimilarity(), lambda b, p: (b, p)),
        (keras.metrics.CosineSimilarity(axis=0), _columns),
        (keras.metrics.PearsonCorrelation(), lambda b, p: (b, p)),
        (keras.metrics.KLDivergence(), lambda b, p: (b, p)),
    ],
)
def test_a_metric_that_mixes_examples_is_refused(keras_metric, arguments):
    with pytest.raises(MetricError, match="'m' .* does not count every example once.*two batches"):
        run(keras_metric, arguments)


def test_a_metric_of_batches_is_found_by_a_batch_of_another_size():
    batches = [(np.zeros(4, "f"), np.zeros(4, "f")), (np.zeros(3, "f"), np.full(3, 8, "f"))]
    columns = lambda b, p: (b[:, None], p[:, None])  # noqa: E731
    for pair in (batches, batches[::-1], [batches[0], (np.zeros(1, "f"), np.ones(1, "f"))]):
        with pytest.raises(MetricError, match="does not count every example once"):
            run(_MeanOfBatches(), columns, pair)


@pytest.mark.parametrize(
    ("keras_metric", "arguments", "expected"),
    [
        (keras.metrics.Mean(), lambda b, p: 2.5, 2.5),
        (keras.metrics.Sum(), lambda b, p: tf.reduce_sum(p), GUESS.sum()),
        (
            keras.metrics.Mean(),
            lambda b, p: {"values": tf.reduce_mean(p), "sample_weight": tf.size(p)},
            GUESS.mean(),
        ),
        (keras.metrics.Mean(), lambda b, p: p[p > 0.5], GUESS[GUESS > 0.5].mean()),
        # The rank within the batch depends on the batch, but each example has one.
        (keras.metrics.Mean(), lambda b, p: tf.cast(tf.argsort(p), tf.float32), 9 / 7),
        (keras.metrics.CosineSimilarity(), _columns, None),
    ],
)
def test_what_counts_every_example_once_is_left_alone(keras_metric, arguments, expected):
    if expected is None:
        truth, guess = (x.numpy() for x in _columns(tf.constant(TRUTH), tf.constant(GUESS)))
        norms = np.linalg.norm(truth, axis=1) * np.linalg.norm(guess, axis=1)
        expected = ((truth * guess).sum(1) / norms).mean()
    assert run(keras_metric, arguments) == pytest.approx(expected)


def test_predictions_are_needed_only_by_what_uses_them():
    def needs(arguments):
        return KerasUpdate("m", metric(keras.metrics.Mean(), arguments)).needs_predictions({"x": 1})

    assert not needs(lambda batch, predictions: batch["x"])
    assert needs(lambda batch, predictions: predictions)
    assert needs(lambda batch, predictions: (batch["x"], predictions["y"]))
    assert needs(lambda batch, predictions: batch["missing"])
