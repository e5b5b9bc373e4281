"""`summary.scalar(..., weight=)`: every example counts once, however it came into a batch."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.toys import Line
from tfloss.errors import SummaryError
from tfloss.hooks import Every, Hook, SaveCheckpoint

VALUES = [1.0, 2.0, 3.0, 4.0, 10.0]  # batches of 4 and 1: means 2.5 and 10


class Logs(Hook):
    """Keeps what is logged as `value`, and the means since step 0 as a Keras callback sees them."""

    def __init__(self):
        self.found, self.names = [], set()

    def before_train(self):
        self.means = self.trainer.window.running_means()

    def on_log(self, step, scalars, summaries):
        self.names |= set(scalars)
        if "value" in scalars:
            self.found.append((step, scalars["value"]))


class Fail(Hook):
    every = Every(steps=6)

    def after_step(self, step):
        raise ZeroDivisionError


def _report(model, batch, y):
    tfloss.summary.scalar("value", tf.reduce_mean(y), weight=tf.shape(y)[0])
    tfloss.summary.scalar("steps", tf.reduce_mean(y), every_step=True)
    return {"mean": tf.reduce_mean(y)}


def _trained(steps, report=_report, values=VALUES, size=4, strategy=None, **options):
    logs = Logs()
    with (strategy or tf.distribute.get_strategy()).scope():
        model, optimizer = Line(report), keras.optimizers.SGD(0.0)
    hooks = [logs, *options.pop("hooks", ())]
    trainer = tfloss.Trainer(
        model, optimizer, hooks=hooks, default_hooks=False, strategy=strategy,
        **{"jit": False, "log_every": 2, **options},
    )  # fmt: skip
    x = np.array(values, np.float32)
    data = tf.data.Dataset.from_tensor_slices({"x": x}).batch(size)  # the last one is smaller
    trainer.train(data.repeat(), steps=steps)
    return logs


@pytest.mark.parametrize(
    ("count", "options"),
    [
        (1, {"jit": False}),
        (1, {"jit": True}),
        (1, {"jit": "loop", "log_every": 4}),
        (1, {"jit": False, "accumulate": 2, "log_every": 1}),
        (2, {"jit": False}),
        (2, {"jit": False, "accumulate": 2, "log_every": 1}),
        pytest.param(2, {"jit": True}, marks=pytest.mark.slow),
    ],
)
def test_the_mean_is_that_of_all_examples(count, options, replicas):
    steps = 2 if "accumulate" in options else 4
    logs = _trained(steps, strategy=replicas(count), **options)
    # 20 / 5, while the mean over steps is 6.25.
    assert [value for _, value in logs.found] == pytest.approx([4.0] * len(logs.found))
    assert [step for step, _ in logs.found][-1] == steps
    assert logs.means.values()["value"] == pytest.approx(4.0)
    if "accumulate" not in options:
        assert logs.means.values()["steps"] == pytest.approx(6.25)
    assert not any("\0" in name for name in {*logs.names, *logs.means.values()})


def test_each_step_has_its_own_mean_if_every_step_is_logged():
    logs = _trained(2, log_every_step=True)
    assert logs.found == [(1, 2.5), (2, 10.0)]


def test_a_masked_mean_counts_what_the_mask_has():
    """The second batch has nothing, so its mean is NaN."""

    def report(model, batch, y):
        mask = tf.cast(y < 3.5, tf.float32)
        mean = tf.reduce_sum(mask * y) / tf.reduce_sum(mask)
        tfloss.summary.scalar("value", mean, weight=tf.reduce_sum(mask))
        return {"mean": tf.reduce_mean(y)}

    assert _trained(2, report).found == [(2, 2.0)]  # (1 + 2 + 3) / 3
    assert _trained(1, report, values=[9.0, 9.0], size=2).found == []  # a mean of nothing


@pytest.mark.parametrize("jit", [False, pytest.param("loop", marks=pytest.mark.slow)])
def test_a_resumed_run_logs_the_same_bits(tmp_path, jit):
    values = np.random.default_rng(0).normal(size=50).astype(np.float32)
    options = {"values": values, "size": 7, "jit": jit, "log_every": 8}
    whole = _trained(16, **options, workdir=tmp_path / "whole", hooks=[SaveCheckpoint(None)])
    with pytest.raises(ZeroDivisionError):
        hooks = [SaveCheckpoint(Every(steps=5)), Fail()]
        _trained(16, **options, workdir=tmp_path / "cut", hooks=hooks)
    again = _trained(16, **options, workdir=tmp_path / "cut", hooks=[SaveCheckpoint(None)])
    assert again.found == whole.found and [step for step, _ in whole.found] == [8, 16]
    assert whole.found[0][1] == pytest.approx(values.mean(), abs=1e-6)  # 7 batches of 7, and 1 more


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": [1.0, 2.0]}, "The weight of summary 'value' is not a scalar: shape"),
        ({"weight": 2.0, "reduce": "sum"}, "has a weight, so it is a mean"),
    ],
)
def test_a_weight_that_makes_no_sense_is_refused(arguments, message):
    def report(model, batch, y):
        tfloss.summary.scalar("value", tf.reduce_mean(y), **arguments)
        return {"mean": tf.reduce_mean(y)}

    with pytest.raises(SummaryError, match=message):
        _trained(1, report)


def test_outside_of_training_it_does_nothing():
    assert tfloss.summary.scalar("value", 1.0, weight=2.0) is None
