"""The range test: losses by hand, divergence, schedules, data that end."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tfloss.data.feed import Feed
from tfloss.errors import DataError
from tfloss.trainer.lr_range import range_test

STEPS = 30
RATES = [1e-3 * 1e6 ** (i / (STEPS - 1)) for i in range(STEPS)]  # to 1,000


class Quadratic(keras.Model):
    """w^2 / 2, from w = 1: an update by SGD multiplies w by 1 - rate."""

    def __init__(self):
        super().__init__(name="quadratic")
        self.w = self.add_weight(name="w", shape=(), initializer="ones")

    def call(self, batch, training=False):
        return 0.5 * self.w**2 + 0.0 * tf.reduce_sum(batch)


def test(optimizer, steps=STEPS, data=None, strategy=None, high=1e3):
    strategy = strategy or tf.distribute.get_strategy()
    data = tf.data.Dataset.from_tensors([1.0, 1.0]).repeat() if data is None else data
    with strategy.scope():
        step = tfloss.TrainStep(Quadratic(), optimizer())
    feed = Feed(data, strategy, 1)
    step.build(feed.reader.element_spec)
    return range_test(step, feed, 1e-3, high, steps)


test.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_losses_by_hand_until_they_diverge(count, replicas):
    found = test(lambda: keras.optimizers.SGD(0.5), strategy=replicas(count))
    w, losses = 1.0, []
    for rate in RATES[: len(found.rates)]:
        losses.append(0.5 * w**2)
        w *= 1.0 - rate
    np.testing.assert_allclose(found.rates, RATES[: len(found.rates)])
    np.testing.assert_allclose(found.losses, losses, rtol=1e-4)
    means = [
        np.average(losses[: i + 1], weights=0.9 ** np.arange(i, -1, -1.0))
        for i in range(len(losses))
    ]
    np.testing.assert_allclose(found.smoothed, means, rtol=1e-4)
    assert found.diverged
    assert len(found.rates) < STEPS
    assert found.smoothed[-1] > found.smoothed[0] > min(found.smoothed)


def test_a_schedule_is_replaced_and_short_data_start_again():
    schedule = keras.optimizers.schedules.PolynomialDecay(1.0, 10, 0.1)
    data = tf.data.Dataset.from_tensors([1.0]).repeat(3)
    found = test(lambda: keras.optimizers.SGD(schedule), data=data, high=0.1)
    assert not found.diverged
    assert len(found.rates) == STEPS
    rates = [1e-3 * 1e2 ** (i / (STEPS - 1)) for i in range(STEPS - 1)]
    assert found.losses[-1] == pytest.approx(0.5 * np.prod([1.0 - r for r in rates]) ** 2, 1e-4)


def test_groups_keep_the_ratio_of_their_rates():
    class Two(keras.Model):
        def __init__(self):
            super().__init__(name="two")
            self.u = self.add_weight(name="u", shape=(), initializer="ones")
            self.v = self.add_weight(name="v", shape=(), initializer="ones")

        def call(self, batch, training=False):
            return self.u + self.v + 0.0 * tf.reduce_sum(batch)

    model = Two()
    groups = {
        "a": (keras.optimizers.SGD(0.1), [model.u]),
        "b": (keras.optimizers.SGD(0.2), [model.v]),
    }
    step = tfloss.TrainStep(model, groups)
    feed = Feed(tf.data.Dataset.from_tensors([1.0]).repeat(), step.strategy, 1)
    step.build(feed.reader.element_spec)
    range_test(step, feed, 1e-3, 1e-2, 10)
    moved = 1.0 - model.u.numpy(), 1.0 - model.v.numpy()
    assert moved[0] == pytest.approx(sum(1e-3 * 10 ** (i / 9) for i in range(10)), rel=1e-3)
    assert moved[1] == pytest.approx(2 * moved[0], rel=1e-3)


def test_no_data_are_refused():
    with pytest.raises(DataError, match="empty"):
        test(lambda: keras.optimizers.SGD(0.5), data=tf.data.Dataset.from_tensors([1.0]).take(0))
