import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.toys import Line, make_step, rows
from tfloss.engine.engine import Engine
from tfloss.optimizers.ema import Ema

DATA = rows([1.0, 2.0, 3.0, 6.0], 4)  # mean 3: each step of rate 0.1 takes 0.3 from w


class Normed(keras.Model):
    def __init__(self):
        super().__init__(name="normed")
        self.norm = keras.layers.BatchNormalization(name="norm", momentum=0.5)

    def call(self, batch, training=False):
        return {"mean": tf.reduce_mean(self.norm(batch["x"][:, None], training=training) ** 2)}


@pytest.mark.promise(15)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_average_after_three_updates(count, replicas):
    train_step, iterator = make_step(Line, DATA, strategy=replicas(count), ema=0.9)
    Engine(train_step).run(iterator, 3)
    average = 1.0
    for weight in (0.7, 0.4, 0.1):
        average = 0.9 * average + 0.1 * weight
    assert train_step.model.w.numpy() == pytest.approx(0.1)
    assert train_step.extra_variables()["ema/line/w"].numpy() == pytest.approx(average)


@pytest.mark.parametrize("count", [1, 2])
def test_swapped_in_and_back(count, replicas):
    train_step, iterator = make_step(Normed, DATA, strategy=replicas(count), ema=0.5)
    Engine(train_step).run(iterator, 2)
    local = train_step.strategy.experimental_local_results

    def values():
        return [np.asarray(x) for v in train_step.model.weights for x in local(v.value)]

    before = values()
    averages = [np.asarray(x) for v in train_step.averages.variables().values() for x in local(v)]
    with train_step.averages.swapped_in(train_step.strategy):
        for got, wanted in zip(values(), averages, strict=True):
            np.testing.assert_array_equal(got, wanted)
        assert not all(np.array_equal(a, b) for a, b in zip(before, values(), strict=True))
    for got, wanted in zip(values(), before, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_they_are_swapped_back_after_an_error():
    train_step, iterator = make_step(Line, DATA, ema=0.9)
    Engine(train_step).run(iterator, 3)
    with pytest.raises(KeyError), train_step.averages.swapped_in(train_step.strategy):
        raise KeyError
    assert train_step.model.w.numpy() == pytest.approx(0.1)


def test_statistics_are_averaged_unless_only_the_trainable_are():
    every, _ = make_step(Normed, DATA, ema=0.9)
    assert any("moving_mean" in name for name in every.extra_variables())
    only, _ = make_step(Normed, DATA, ema=Ema(0.9, trainable_only=True))
    assert [name.split("/")[-1] for name in only.extra_variables()] == ["gamma", "beta"]


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1])
def test_a_decay_that_makes_no_sense_is_refused(decay):
    with pytest.raises(ValueError, match="the decay must be between 0 and 1"):
        Ema(decay)


def test_float64_weights_come_back_bit_for_bit():
    class Double(keras.Model):
        def __init__(self):
            super().__init__(name="double")
            self.w = self.add_weight(dtype="float64", initializer="ones", name="w")

        def call(self, batch, training=False):
            return {"loss": tf.reduce_mean(tf.cast(batch["x"], tf.float64)) * self.w.value}

    train_step, iterator = make_step(Double, DATA, ema=0.9)
    Engine(train_step).run(iterator, 1)
    weight, third = train_step.model.w, 1.0 / 3.0  # not a float32
    weight.assign(third)
    average = train_step.extra_variables()["ema/double/w"]
    assert average.dtype == tf.float64
    assert average.numpy() == pytest.approx(0.97, abs=1e-8)
    with train_step.averages.swapped_in(train_step.strategy):
        assert weight.numpy() == pytest.approx(0.97, abs=1e-8)
    assert float(weight.numpy()) == third
