"""Yu et al. (2020), algorithm 1, in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.balancing.two_heads import (
    HOW,
    STEPS,
    Plain,
    TwoHeads,
    assert_close,
    dataset,
    trained,
)
from tests.toys import Line, rows, run
from tfloss.balancing import PCGrad
from tfloss.balancing.pcgrad import random_order
from tfloss.engine.engine import Engine
from tfloss.errors import LossError

NAMES = ["head/a", "b", "c"]


def projected(gradients, order):
    """Algorithm 1: each flat gradient, projected onto the normal planes of those it conflicts with.

    Returns:
      Their sum, and how often a gradient was changed.
    """
    total, conflicts = np.zeros_like(gradients[0]), 0
    for i, gradient in enumerate(gradients):
        mine = gradient.copy()
        for j in order[i]:
            if j != i and mine @ gradients[j] < 0:
                mine -= (mine @ gradients[j]) / (gradients[j] @ gradients[j]) * gradients[j]
                conflicts += 1
        total += mine
    return total, conflicts


def plain(before, seed):
    model, conflicts = Plain(before), 0
    count = len(model.trunk.trainable_variables)
    for step in range(STEPS):
        with tf.GradientTape(persistent=True) as tape:
            found = model.losses(step)
        each = [
            [
                np.zeros(v.shape) if g is None else g.numpy().astype(np.float64)
                for g, v in zip(
                    tape.gradient(found[name], [v.value for v in model.variables]),
                    model.variables,
                    strict=True,
                )
            ]
            for name in NAMES
        ]
        flat = [np.concatenate([g.ravel() for g in one[:count]]) for one in each]
        order = random_order(seed, tf.constant(step, tf.int64), len(NAMES)).numpy()
        shared, found = projected(flat, order)
        conflicts += found
        sums = [sum(parts) for parts in zip(*each, strict=True)]
        sizes = np.cumsum([one.size for one in sums[:count]])[:-1]
        pieces = np.split(shared, sizes)
        parts = [p.reshape(one.shape) for p, one in zip(pieces, sums[:count], strict=True)]
        model.move([*parts, *sums[count:]])
    return model, conflicts


@pytest.mark.parametrize(("mode", "count"), HOW)
def test_weights_are_those_of_the_algorithm(mode, count, replicas):
    _, before, after, _ = trained(PCGrad(NAMES, seed=3), replicas(count), mode)
    model, conflicts = plain(before, 3)
    assert conflicts >= STEPS
    assert_close(after, model.weights(), before)


def test_two_gradients_by_hand():
    """(1, 0) and (-1, 1) conflict: they become (1/2, 1/2) and (0, 1)."""

    class Two(keras.Model):
        def __init__(self):
            super().__init__(name="two")
            self.w = self.add_weight(name="w", shape=[2], initializer="zeros")

        def call(self, batch, training=False):
            w = self.w + 0.0 * batch["x"][0]
            return {"a": w[0], "b": w[1] - w[0]}

    for steps, weights, expected in (
        (1, None, [-0.05, -0.15]),  # the sum is (1/2, 3/2), the rate 0.1
        (1, {"b": 2.0}, [-0.05, -0.25]),  # (-2, 2) projects the same: (1/2, 1/2) + (0, 2)
    ):
        balancer = PCGrad(["a", "b"], weights=weights)
        step, _, _ = run(Two, rows([1.0, 1.0], 2), steps, loss_weights=balancer)
        assert step.model.w.numpy().tolist() == pytest.approx(expected)


def test_without_a_conflict_nothing_changes_to_the_bit(replicas):
    def report(model, batch, y):
        return {"a": tf.reduce_mean(y), "b": tf.reduce_mean(y) / 3.0, "c": tf.reduce_mean(y**2)}

    found = [
        run(lambda: Line(report), rows([0.1, 0.7], 2), 5, loss_weights=one)[0].model.w.numpy()
        for one in (None, PCGrad())
    ]
    assert found[0] == found[1]


def test_a_shared_embedding_and_weight_regularizers():
    """The embedding's gradients conflict in its row 1; the regularizer is not projected."""

    class Rows(keras.Model):
        def __init__(self):
            super().__init__(name="rows")
            l2 = keras.regularizers.L2(0.5)
            self.table = keras.layers.Embedding(
                3, 2, embeddings_initializer="ones", embeddings_regularizer=l2, name="table"
            )

        def call(self, batch, training=False):
            z = self.table(batch["i"])
            return {"a": tf.reduce_sum(z[0, 0]), "b": tf.reduce_sum(z[0, 1] - z[0, 0])}

    data = tf.data.Dataset.from_tensors({"i": tf.constant([1])}).repeat()
    step, _, _ = run(Rows, data, loss_weights=PCGrad())
    expected = np.full([3, 2], 1.0 - 0.1)  # the regularizer's gradient is w
    expected[1] -= [0.05, 0.15]
    np.testing.assert_allclose(step.model.table.embeddings.numpy(), expected, rtol=1e-6)


@pytest.mark.slow
def test_groups_that_are_due_in_turn(replicas):
    """The trunk is updated at every second step; the heads' losses are projected only then."""

    def groups(model):
        return {
            "trunk": tfloss.Group(keras.optimizers.SGD(0.2), model.trunk, every=2),
            "rest": (keras.optimizers.SGD(0.2), [model.a, model.b]),
        }

    found = []
    for balancer in (None, PCGrad()):
        keras.utils.set_random_seed(1)
        model = TwoHeads()
        step = tfloss.TrainStep(model, groups(model), loss_weights=balancer)
        step.build(dataset().element_spec)
        engine, iterator = Engine(step), iter(dataset())
        each = []
        for _ in range(3):
            engine.run(iterator, 1)
            each.append([v.numpy() for v in model.trunk.trainable_variables])
        found.append(each)
    plain_trunk, projected_trunk = found
    assert np.abs(plain_trunk[0][0] - projected_trunk[0][0]).max() > 1e-3
    np.testing.assert_array_equal(projected_trunk[0][0], projected_trunk[1][0])  # not due
    assert np.abs(projected_trunk[2][0] - projected_trunk[1][0]).max() > 1e-3


def test_the_order_is_a_permutation_that_changes_with_the_step():
    orders = [random_order(0, tf.constant(step, tf.int64), 4).numpy() for step in range(5)]
    for order in orders:
        assert np.sort(order, axis=1).tolist() == [[0, 1, 2, 3]] * 4
    assert len({order.tobytes() for order in orders}) == 5
    assert random_order(0, tf.constant(2), 4).numpy().tolist() == orders[2].tolist()


def test_one_loss_is_refused():
    with pytest.raises(LossError, match="at least two different losses"):
        PCGrad(["a"])
