"""Lingvo's ComputePredictions and ComputeLoss. test_identity.py compares the training."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tfloss import hooks
from tfloss.adapters import lingvo_style
from tfloss.errors import LossError, ModelError


class _Task(keras.Layer):
    """w x, with w = 1 at the start; the loss is a mean over the words that count."""

    def __init__(self, returned=None):
        super().__init__(name="task")
        self.w = self.add_weight(name="w", shape=(), initializer="ones")
        self.returned = returned

    def ComputePredictions(self, theta, batch):  # noqa: N802 - Lingvo's name
        return theta["task/w" if "task/w" in theta else "w"] * batch["x"]

    def ComputeLoss(self, theta, predictions, batch):  # noqa: N802
        if self.returned is not None:
            return self.returned
        words = tf.reduce_sum(batch["counts"])
        size = tf.cast(tf.shape(predictions)[0], tf.float32)
        loss = tf.math.divide_no_nan(tf.reduce_sum(batch["counts"] * predictions**2), words)
        metrics = {"loss": (loss, words), "largest": (tf.reduce_max(predictions), size)}
        return metrics, {"square": predictions**2}


class _Logs(hooks.Hook):
    def __init__(self):
        super().__init__()
        self.found = {}

    def on_log(self, step, scalars, summaries):
        self.found |= scalars


_X, _COUNTS = np.float32([1, 2, 3, 4]), np.float32([1, 0, 1, 1])


@pytest.mark.parametrize(
    ("count", "options", "largest"),
    [(1, {}, 4.0), (2, {}, 3.0), (2, {"jit": True}, 3.0), (1, {"accumulate": 2}, 3.0)],
)
def test_values_are_means_weighted_over_all_parts(count, options, largest, replicas):
    data = tf.data.Dataset.from_tensor_slices({"x": _X, "counts": _COUNTS})
    data = data.batch(4 // options.get("accumulate", 1))
    with (strategy := replicas(count)).scope():
        model, optimizer = lingvo_style(_Task()), keras.optimizers.SGD(0.01)
    options = {"default_hooks": False, "jit": False, "strategy": strategy, **options}
    trainer = tfloss.Trainer(model, optimizer, log_every=1, **options)
    logs = _Logs()
    result = trainer.train(data, steps=1, hooks=[logs])
    expected = (1 + 9 + 16) / 3
    assert result.losses == pytest.approx({"loss": expected, "total": expected})
    assert float(model.task.w.numpy()) == pytest.approx(1 - 0.01 * 2 * expected)
    assert logs.found["largest"] == pytest.approx(largest)  # of a part; then their mean
    np.testing.assert_allclose(model({"x": _X}), _X * (1 - 0.02 * expected), rtol=1e-6)


def test_a_logged_metric_is_weighted_over_the_steps():
    class Words(_Task):
        def ComputeLoss(self, theta, predictions, batch):  # noqa: N802
            words = tf.reduce_sum(batch["counts"])
            return {"loss": (0.0 * self.w, words), "words": (words, words)}, {}

    counts = np.float32([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]])
    data = tf.data.Dataset.from_tensor_slices({"x": counts, "counts": counts})
    logs = _Logs()
    options = {"default_hooks": False, "jit": False, "log_every": 4}
    trainer = tfloss.Trainer(lingvo_style(Words()), keras.optimizers.SGD(0.0), **options)
    trainer.train(data, steps=4, hooks=[logs])
    assert logs.found["words"] == pytest.approx((3 * 3 + 1 * 1 + 2 * 2) / (3 + 1 + 2))


def test_an_own_theta_is_used():
    class Own(_Task):
        @property
        def theta(self):
            return {"w": 2.0 * self.w}

    np.testing.assert_array_equal(lingvo_style(Own())({"x": _X}), 2 * _X)


@pytest.mark.filterwarnings("ignore:Layer 'lingvo_style_task' looks like it has unbuilt state")
def test_what_is_no_task_of_lingvo_is_refused():
    class Half(keras.Layer):
        def ComputePredictions(self, theta, batch):  # noqa: N802
            return batch

    class Plain:
        ComputePredictions = ComputeLoss = None

    with pytest.raises(ModelError, match="Task Half has no method ComputeLoss"):
        lingvo_style(Half())
    with pytest.raises(ModelError, match="Task Plain is not a keras.Layer"):
        lingvo_style(Plain())
    one = tf.constant(1.0)
    for returned, message in [
        (one, r"must return \(metrics, per_example\)"),
        (({"loss": one}, {}), r"metric 'loss' must be \(value, weight\)"),
        (({"error": (one, 1.0)}, {}), "no metric named 'loss'.*It returned: error"),
    ]:
        with pytest.raises(LossError, match=message):
            lingvo_style(_Task(returned))({"x": _X}, training=True)
