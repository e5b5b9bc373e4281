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


def _masked_means(y, mask):
    each = _each(y)
    number = tf.cast(tf.math.count_nonzero(mask), tf.float32)
    inverse = tf.math.reciprocal(tf.reduce_sum(mask))  # reciprocal
    return {
        "boolean": tf.reduce_mean(tf.boolean_mask(each, mask > 0)),  # boolean
        "gather": tf.reduce_mean(tf.gather(each, tf.where(mask > 0)[:, 0])),  # gather
        "reciprocal": tf.reduce_sum(each * mask) * inverse,
        "power": tf.reduce_sum(each * mask) * tf.reduce_sum(mask) ** -1.0,  # power
        "weights": tf.reduce_sum(each * (mask / tf.reduce_sum(mask))),  # weights
        "ops": keras.ops.mean(each * mask) / keras.ops.mean(mask),  # ops
        "count": tf.reduce_sum(each * mask) / number,  # count
    }


@pytest.mark.filterwarnings("ignore:Loss 'weights' is a sum")
def test_a_mean_over_a_local_mask_is_known_in_each_spelling(replicas):
    found = _found(replicas, _masked_means)
    assert len(found) == 7 and {name for _, name, *_ in found} == set(
        ("boolean", "gather", "reciprocal", "power", "weights", "ops", "count")
    )
    for kind, name, line, cure in found:
        assert kind == LOSS and "tfloss.global_mean(values, mask)" in cure
        assert line == f"{__file__}:{_line(f'# {name}')}, in _masked_means", name


class Endpoint(keras.layers.Layer):
    """Adds a loss and returns predictions, as the CTC layer of Keras's example does."""

    def __init__(self, reduce):
        super().__init__(name="ctc_loss")
        self.reduce = reduce

    def call(self, labels, predictions):
        ones = keras.ops.ones_like(labels[:, 0])
        ctc = keras.ops.ctc_loss(labels, predictions, 2 * ones, 6 * ones)
        self.add_loss(self.reduce(ctc))  # ctc
        return predictions


@pytest.mark.parametrize("reduce", [keras.ops.sum, keras.ops.mean, tfloss.global_sum])
def test_the_sum_of_a_ctc_endpoint_is_named(replicas, reduce):
    strategy = replicas(2)
    with strategy.scope():
        text, labels = keras.Input([6, 3]), keras.Input([2], dtype="int32")
        hidden = keras.layers.LSTM(3, return_sequences=True, dropout=0.25)(text)
        logits = keras.layers.Dense(4)(hidden)
        model = keras.Model([text, labels], Endpoint(reduce)(labels, logits))
        model = tfloss.adapters.outputs_ignored(model)
        optimizer = keras.optimizers.SGD(0.1)
    x = np.random.default_rng(0).normal(size=[8, 6, 3]).astype("f")
    data = tf.data.Dataset.from_tensors((x, np.tile(np.int32([[1, 2]]), [8, 1]))).repeat()
    trainer = tfloss.Trainer(model, optimizer, strategy=strategy, default_hooks=False, seed=0)
    report = trainer.inspect(data)
    # The LSTM reads its seed in inference, too, which is no layer to train.
    assert not [one for one in report.findings if one.kind == "Layer that only inference uses"]
    found = compared(trainer, data, report).findings[len(report.findings) :]
    named = [(one.kind, one.subject.split("'")[1], one.line) for one in found]
    line = f"{__file__}:{_line('# ctc')}, in call"
    assert named == ([(LOSS, "ctc_loss", line)] if reduce is keras.ops.sum else [])
    assert all("tfloss.global_sum" in one.cure for one in found)


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
