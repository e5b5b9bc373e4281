"""Training forwards that take gradients of the model's own weights.

SAM (Foret et al. 2021), PCGrad (Yu et al. 2020) and DP-SGD (Abadi et al. 2016), each against a
loop in plain TensorFlow, which runs eagerly on one device.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tfloss.data.feed import Feed
from tfloss.engine.engine import Engine

STEPS, BATCH, RATE = 3, 16, 0.1
RADIUS, CLIP, NOISE = 0.5, 0.3, 0.05
RANDOM = np.random.RandomState(0)
X = RANDOM.randn(STEPS * BATCH, 5).astype(np.float32)
Y = np.tanh(X @ RANDOM.randn(5, 2)).astype(np.float32)
MEAN = tf.distribute.ReduceOp.MEAN


def errors(net, batch):
    """Squared error of each example."""
    return tf.reduce_mean((net(batch["x"]) - batch["y"]) ** 2, -1)


def tasks(net, batch):
    """Two losses whose gradients conflict."""
    z = net(batch["x"])
    return [tf.reduce_mean((z[:, 0] - 1.0) ** 2), tf.reduce_mean((z[:, 0] + z[:, 1] + 1.0) ** 2)]


def ascent(gradients):
    """How SAM moves the weights."""
    norm = tf.linalg.global_norm(gradients)
    return [tf.stop_gradient(RADIUS * g / norm) for g in gradients]


def projected(first, second):
    """The sum of two gradients, each without its part against the other."""

    def flat(gradients):
        return tf.concat([tf.reshape(g, [-1]) for g in gradients], 0)

    a, b = flat(first), flat(second)
    dot = tf.reduce_sum(a * b)
    tf.debugging.assert_less(dot, 0.0) if tf.executing_eagerly() else None
    a_scale = tf.minimum(dot, 0.0) / tf.reduce_sum(b * b)
    b_scale = tf.minimum(dot, 0.0) / tf.reduce_sum(a * a)
    return [p - a_scale * q + q - b_scale * p for p, q in zip(first, second, strict=True)]


def clipped(jacobians):
    """The mean of the examples' gradients, each clipped to the norm CLIP."""
    squares = [tf.reduce_sum(j**2, list(range(1, len(j.shape)))) for j in jacobians]
    factors = tf.minimum(1.0, CLIP / tf.sqrt(tf.add_n(squares)))
    count = tf.cast(tf.size(factors), tf.float32)
    return [tf.tensordot(factors, j, 1) / count for j in jacobians]


def noise(step, index, shape):
    return NOISE * tf.random.stateless_normal(shape, tf.stack([tf.cast(step, tf.int32), index]))


# In plain TensorFlow


def plain(algorithm, net, batch, step):
    """The gradient of one step."""
    weights = [v.value for v in net.trainable_variables]

    def gradients(loss):
        with tf.GradientTape() as tape:
            value = loss()
        return tape.gradient(value, weights)

    if algorithm == "SAM":
        before = [w.numpy() for w in weights]
        for w, e in zip(weights, ascent(gradients(lambda: errors(net, batch))), strict=True):
            w.assign_add(e)
        found = gradients(lambda: tf.reduce_mean(errors(net, batch)))
        for w, value in zip(weights, before, strict=True):
            w.assign(value)
        return found
    if algorithm == "PCGrad":
        return projected(*(gradients(lambda i=i: tasks(net, batch)[i]) for i in range(2)))
    each = [
        gradients(lambda i=i: errors(net, {k: v[i : i + 1] for k, v in batch.items()})[0])
        for i in range(BATCH)
    ]
    summed = clipped([tf.stack(one) for one in zip(*each, strict=True)])
    return [g + noise(step, i, g.shape) for i, g in enumerate(summed)]


# In tfloss


def with_gradient(loss, gradients, variables):
    """The loss, with another gradient."""
    pairs = zip(gradients, variables, strict=True)
    linear = tf.add_n([tf.reduce_sum(tf.stop_gradient(g) * v) for g, v in pairs])
    return tf.stop_gradient(loss - linear) + linear


def report(algorithm, net, batch):
    """The training forward. Replica code."""
    net(batch["x"])  # the first call creates the weights
    replica, weights = tf.distribute.get_replica_context(), net.trainable_variables
    if algorithm == "SAM":
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(errors(net, batch))
        moves = ascent(replica.all_reduce(MEAN, tape.gradient(loss, weights)))
        moved = [(w, w + e) for w, e in zip(weights, moves, strict=True)]
        with keras.StatelessScope(moved):
            return {"error": tf.reduce_mean(errors(net, batch))}
    if algorithm == "PCGrad":
        with tf.GradientTape(persistent=True) as tape:
            losses = tasks(net, batch)
        found = [replica.all_reduce(MEAN, tape.gradient(one, weights)) for one in losses]
        return {"error": with_gradient(tf.add_n(losses), projected(*found), weights)}
    with tf.GradientTape() as tape:
        each = errors(net, batch)
    found = clipped(tape.jacobian(each, weights))
    noisy = [g + noise(tfloss.current_step(), i, g.shape) for i, g in enumerate(found)]
    return {"error": with_gradient(tf.reduce_mean(each), noisy, weights)}


class Model(keras.Model):
    """Reports in its `call`, or in a method that a `TrainStep` calls."""

    def __init__(self, algorithm, where):
        super().__init__(name="model")
        self.algorithm, self.where = algorithm, where
        dense = keras.layers.Dense
        self.net = keras.Sequential([dense(4, "tanh"), dense(2)], name="net")

    def call(self, batch, training=False):
        if training and self.where == "call":
            return report(self.algorithm, self.net, batch)
        if training and self.where == "guide":
            return {"error": tf.reduce_mean(errors(self.net, batch))}
        return self.net(batch["x"])


class GuideStep(tfloss.TrainStep):
    """SAM, as in docs/guide.md."""

    def forward(self, batch):
        with tf.GradientTape() as tape:
            loss = self.model(batch, training=True)["error"]
        weights, replica = self.model.trainable_variables, tf.distribute.get_replica_context()
        gradients = replica.all_reduce(MEAN, tape.gradient(loss, weights))
        scale = RADIUS / tf.linalg.global_norm(gradients)
        moved = [
            (w, w + tf.stop_gradient(scale * g)) for w, g in zip(weights, gradients, strict=True)
        ]
        with keras.StatelessScope(moved):
            return self.model(batch, training=True)


class Step(tfloss.TrainStep):
    def step(self, batch):
        return self.minimize(self.forward, batch)

    def forward(self, batch):
        return report(self.model.algorithm, self.model.net, batch)


class AscentStep(tfloss.TrainStep):
    """SAM as many write it: the weights are moved, and moved back after the update."""

    def step(self, batch):
        weights = self.model.net.trainable_variables

        def move(batch):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(errors(self.model.net, batch))
            replica = tf.distribute.get_replica_context()
            moves = ascent(replica.all_reduce(MEAN, tape.gradient(loss, weights)))
            for w, e in zip(weights, moves, strict=True):
                w.assign_add(e)
            return moves

        moves = self.strategy.run(move, args=(batch,))
        losses = self.minimize(self.forward, batch)

        def move_back(moves):
            for w, e in zip(weights, moves, strict=True):
                w.assign_sub(e)

        self.strategy.run(move_back, args=(moves,))
        return losses

    def forward(self, batch):
        return {"error": tf.reduce_mean(errors(self.model.net, batch))}


def trained(algorithm, where, mode, strategy):
    """The weights at the start and after the steps, and the losses."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    kinds = {"call": tfloss.TrainStep, "forward": Step, "step": AscentStep, "guide": GuideStep}
    kind = kinds[where]
    with strategy.scope():
        step = kind(Model(algorithm, where), keras.optimizers.SGD(RATE))
    data = tf.data.Dataset.from_tensor_slices({"x": X, "y": Y}).batch(BATCH).repeat()
    feed = Feed(data, strategy, 1)
    step.build(feed.reader.element_spec)
    net = step.model.net
    before = net.get_weights()
    engine, source, done, rows = Engine(step, mode=mode), feed.input.iterator, 0, []
    if mode == "loop":
        source = feed.input.source("loop")
        source.reads_ahead = True
    while done < STEPS:
        logs = engine.run(source, STEPS - done)
        done += logs.steps
        rows += [dict(zip(logs.names, row.tolist(), strict=True)) for row in logs.rows()]
    return before, net.get_weights(), [row["losses/error"] for row in rows]


def reference(algorithm, before):
    """The same in plain TensorFlow: the weights after the steps."""
    dense = keras.layers.Dense
    net = keras.Sequential([keras.Input([5]), dense(4, "tanh"), dense(2)])
    net.set_weights(before)
    for step in range(STEPS):
        rows = slice(step * BATCH, (step + 1) * BATCH)
        batch = {"x": tf.constant(X[rows]), "y": tf.constant(Y[rows])}
        for v, g in zip(net.trainable_variables, plain(algorithm, net, batch, step), strict=True):
            v.assign_sub(RATE * g)
    return net.get_weights()


QUICK = [("call", "graph", 1), ("forward", "graph", 2)]
SLOW = [("call", "graph", 4), ("call", "step", 1), ("forward", "loop", 1)]
CASES = [
    pytest.param(algorithm, *how, marks=[] if how in QUICK else pytest.mark.slow)
    for algorithm in ("SAM", "PCGrad", "DP-SGD")
    for how in QUICK + SLOW
]
CASES += [("SAM", where, "graph", 2) for where in ("step", "guide")]
CASES += [pytest.param("SAM", "step", "graph", 4, marks=pytest.mark.slow)]
CASES += [pytest.param("DP-SGD", "call", "step", 2, marks=pytest.mark.slow)]


@pytest.mark.promise(54)
@pytest.mark.parametrize(("algorithm", "where", "mode", "count"), CASES)
def test_weights_are_those_of_plain_tensorflow(algorithm, where, mode, count, replicas):
    before, after, losses = trained(algorithm, where, mode, replicas(count))
    expected = reference(algorithm, before)
    for start, one, other in zip(before, after, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)
        assert np.abs(start - one).max() > 1e-3
    assert np.isfinite(losses).all() and len(losses) == STEPS
