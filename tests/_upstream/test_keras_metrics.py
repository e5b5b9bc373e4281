"""Keras metrics: their direction, and copies of them."""

import keras
import numpy as np
import pytest

from tfloss import _upstream

pytestmark = pytest.mark.upstream

VECTORS = np.float32([[1, 2], [3, 4]]), np.float32([[2, 1], [1, 1]])


@pytest.mark.promise(42)
def test_a_copy_by_config_loses_arguments():
    original = keras.metrics.CosineSimilarity(axis=0)
    copy = keras.metrics.CosineSimilarity.from_config(original.get_config())
    assert float(original(*VECTORS)) != pytest.approx(float(copy(*VECTORS)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.metrics.CosineSimilarity(axis=0),
        lambda: keras.metrics.MeanIoU(5),
        lambda: keras.metrics.AUC(curve="PR"),
        lambda: keras.metrics.F1Score(),
    ],
)
def test_a_copy_counts_for_itself(make):
    truth, guess = np.float32([[1, 0], [0, 1]]), np.float32([[1, 0], [1, 0]])
    original = make()
    copy = _upstream.copy_metric(original)
    expected = make()(truth, guess)
    np.testing.assert_array_equal(copy(truth, guess), expected)
    original.reset_state()
    np.testing.assert_array_equal(copy.result(), expected)
    assert not {id(v) for v in copy.variables} & {id(v) for v in original.variables}


def test_a_metric_of_metrics_is_copied_and_its_model_is_shared():
    class Outer(keras.metrics.Metric):
        def __init__(self):
            super().__init__()
            self.model = keras.Sequential([keras.layers.Dense(1)])
            self.inner = [keras.metrics.Mean()]

        def update_state(self, values):
            self.inner[0].update_state(values)

        def result(self):
            return self.inner[0].result()

    original = Outer()
    copy = _upstream.copy_metric(original)
    copy.update_state([3.0])
    assert float(copy.result()) == 3.0 and float(original.result()) == 0.0
    assert copy.model is original.model and len(copy.variables) == 2


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        (keras.metrics.MeanAbsoluteError(), "min"),
        (keras.metrics.RootMeanSquaredError(), "min"),
        (keras.metrics.MeanMetricWrapper(keras.losses.mean_squared_error), "min"),
        (keras.metrics.BinaryAccuracy(), "max"),
        (keras.metrics.AUC(), "max"),
        (keras.metrics.Mean(), None),
        (keras.metrics.FalsePositives(), None),
    ],
)
def test_keras_knows_the_direction_of_most_metrics(metric, mode):
    assert _upstream.metric_mode(metric) == mode
