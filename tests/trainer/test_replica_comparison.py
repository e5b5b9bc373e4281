"""Losses and gradients that change with the number of replicas are named, others are not."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.toys import rows
from tfloss.trainer.replica_comparison import GRADIENT, LOSS, compared

X = np.random.default_rng(0).normal(size=[10, 4]).astype(np.float32)
# Of the first half of a batch, another share is positive than of the second half.
DATA = rows(np.concatenate([X, np.arange(10)[:, None] < 7], 1), 10)


class Net(keras.Model):
    def __init__(self, losses, norm, rate=0.0):
        super().__init__(name="net")
        self.head = keras.layers.Dense(3)
        self.norm = keras.layers.BatchNormalization(synchronized=norm == "synchronized")
        self.drop = keras.layers.Dropout(rate)
        self.losses_of = losses
        self.normalises = bool(norm)

    def call(self, batch, training=False):
        x, mask = batch["x"][:, :4], batch["x"][:, 4]
        y = self.drop(self.head(x))
        y = self.norm(y) if self.normalises else y  # norm
        return self.losses_of(y, mask) if training else y


def _found(replicas, losses, norm="", rate=0.0):
    strategy = replicas(2)
    with strategy.scope():
        model, optimizer = Net(losses, norm, rate), keras.optimizers.SGD(0.1)
    trainer = tfloss.Trainer(model, optimizer, strategy=strategy, default_hooks=False, seed=0)
    report = trainer.inspect(DATA)
    found = compared(trainer, DATA, report).findings[len(report.findings) :]
    return [(one.kind, one.subject.split("'")[1], one.line, one.cure) for one in found]


def _line(comment):
    with open(__file__) as file:
        return next(i for i, text in enumerate(file, 1) if text.rstrip().endswith(comment))


def _each(y):
    return tf.reduce_sum(y**2, 1)


def _wrong(y, mask):
    unit = tf.math.l2_normalize(y, 1)
    pairs = tf.matmul(unit, unit, transpose_b=True)  # pairs
    return {
        "sum": tf.reduce_sum(_each(y)),  # sum
        "hidden": tf.sqrt(tf.reduce_sum(_each(y))),  # hidden
        "masked": tf.reduce_sum(_each(y) * mask) / tf.reduce_sum(mask),  # masked
        "pairs": tf.reduce_mean(tf.reduce_logsumexp(pairs, 1)),
        "mean": tf.reduce_mean(_each(y)),
    }


def test_each_loss_that_changes_is_named_with_its_line_and_cure(replicas):
    found = _found(replicas, _wrong)
    assert [kind for kind, *_ in found] == [LOSS] * 4
    by_name = {name: (line, cure) for _, name, line, cure in found}
    cures = {
        "sum": "tfloss.global_sum",
        "hidden": "tfloss.global_mean, tfloss.global_sum",
        "masked": "tfloss.global_mean(values, mask)",
        "pairs": "tfloss.cross_replica_concat",
    }
    assert by_name.keys() == cures.keys()
    for name, cure in cures.items():
        assert by_name[name][0] == f"{__file__}:{_line(f'# {name}')}, in _wrong"
        assert cure in by_name[name][1]


def test_batch_normalization_is_the_cause_unless_it_is_synchronised(replicas):
    def loss(y, mask):
        return {"cubed": tf.reduce_mean(tf.abs(y) ** 3)}

    ((kind, name, line, cure),) = _found(replicas, loss, norm="local")
    assert (kind, name) == (LOSS, "cubed") and line == f"{__file__}:{_line('# norm')}, in call"
    assert "net/batch_normalization" in cure and "synchronized=True" in cure
    assert _found(replicas, loss, norm="synchronized") == []


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_what_is_right_is_not_named_and_random_numbers_are_no_difference(replicas, rate):
    def right(y, mask):
        return {
            "mean": tf.reduce_mean(y**2),
            "sum": tfloss.global_sum(_each(y)),
            "masked": tfloss.global_mean(_each(y), mask),
            "keras": keras.losses.MeanSquaredError()(tf.zeros_like(y), y),
        }

    assert _found(replicas, right, rate=rate) == []


def test_a_gradient_that_changes_alone_is_named(replicas):
    @tf.custom_gradient
    def summed_backwards(x):
        return tf.reduce_mean(x), lambda d: d * tf.ones_like(x)

    def loss(y, mask):
        return {"odd": summed_backwards(_each(y))}  # the mean, with the gradient of the sum

    found = _found(replicas, loss)
    assert {(kind, name) for kind, name, *_ in found} == {
        (GRADIENT, "net/dense/kernel"),
        (GRADIENT, "net/dense/bias"),
    }
