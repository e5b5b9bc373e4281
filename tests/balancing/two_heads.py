"""A model with a trunk and two heads, trained by tfloss and by a plain loop that knows a paper."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tfloss.data.feed import Feed
from tfloss.engine.engine import Engine

STEPS, BATCH, RATE = 5, 16, 0.2
RANDOM = np.random.RandomState(0)
X = RANDOM.randn(STEPS * BATCH, 3).astype(np.float32)
LABEL = (X[:, 0] > 0).astype(np.int64)


def build():
    dense = keras.layers.Dense
    return (
        keras.Sequential([dense(4, "tanh")], name="trunk"),
        dense(1, name="a"),
        dense(2, name="b"),
    )


def losses(trunk, a, b, batch):
    """A regression, a classification and a penalty; their gradients conflict."""
    h = trunk(batch["x"])
    logits = b(h)
    cross = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits)
    return {
        "head/a": 3.0 * tf.reduce_mean((a(h)[:, 0] - 1.0 + batch["x"][:, 0]) ** 2),
        "b": tf.reduce_mean(cross),
        "c": tf.reduce_mean((h + 0.5) ** 2),
    }


class TwoHeads(keras.Model):
    def __init__(self):
        super().__init__(name="net")
        self.trunk, self.a, self.b = build()

    def call(self, batch, training=False):
        return losses(self.trunk, self.a, self.b, batch) if training else self.trunk(batch["x"])


def dataset(batch=BATCH):
    columns = {"x": X, "label": LABEL}
    return tf.data.Dataset.from_tensor_slices(columns).batch(batch, drop_remainder=True).repeat()


def trained(loss_weights, strategy, mode="graph", steps=STEPS, **options):
    """Trains with SGD.

    Returns:
      The step, the weights before and after, the logged rows.
    """
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    with strategy.scope():
        step = tfloss.TrainStep(
            TwoHeads(), keras.optimizers.SGD(RATE), loss_weights=loss_weights, **options
        )
    feed = Feed(dataset(BATCH // step.accumulate), strategy, step.accumulate)
    step.build(feed.reader.element_spec)
    before = step.model.get_weights()
    engine, source, done, rows = Engine(step, mode=mode), feed.input.iterator, 0, []
    if mode == "loop":
        source = feed.input.source("loop")
        source.reads_ahead = True
    while done < steps:
        logs = engine.run(source, steps - done)
        done += logs.steps
        rows += [dict(zip(logs.names, row.tolist(), strict=True)) for row in logs.rows()]
    return step, before, step.model.get_weights(), rows


class Plain:
    """The same model in eager TensorFlow, on one device, with the gradient of each loss."""

    def __init__(self, weights):
        self.trunk, self.a, self.b = build()
        net = keras.Sequential([self.trunk])
        net.build([None, 3])
        self.a.build([None, 4])
        self.b.build([None, 4])
        self.layers = [self.trunk, self.a, self.b]
        self.variables = [v for layer in self.layers for v in layer.trainable_variables]
        for variable, value in zip(self.variables, weights, strict=True):
            variable.assign(value)

    def batch(self, step):
        rows = slice(step * BATCH, (step + 1) * BATCH)
        return {"x": tf.constant(X[rows]), "label": tf.constant(LABEL[rows])}

    def losses(self, step):
        return losses(self.trunk, self.a, self.b, self.batch(step))

    def move(self, gradients):
        for variable, gradient in zip(self.variables, gradients, strict=True):
            variable.assign_sub(RATE * gradient)

    def weights(self):
        return [variable.numpy() for variable in self.variables]


def assert_close(found, expected, before):
    for one, other, start in zip(found, expected, before, strict=True):
        np.testing.assert_allclose(one, other, atol=3e-6)
        assert np.abs(start - other).max() > 1e-3


QUICK = [("graph", 2)]
SLOW = [("loop", 1), ("graph", 1), ("step", 2), ("step", 1)]
HOW = [*QUICK, *(pytest.param(*how, marks=pytest.mark.slow) for how in SLOW)]
