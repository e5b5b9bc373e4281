"""The losses and variables whose gradients are not finite are found one by one."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfloss.forward.losses import LossWeights
from tfloss.step.backward import Backward
from tfloss.step.loss_gradients import find_nonfinite


class _Model(keras.Model):
    def __init__(self):
        super().__init__(name="model")
        self.a = self.add_weight(name="a", shape=(2,), initializer="ones")
        self.b = self.add_weight(name="b", shape=(), initializer="ones")

    def call(self, batch, training=False):
        x = batch["x"]
        return {
            "root": tf.reduce_mean(tf.sqrt(x * self.a[0] * self.b)),  # NaN for both at x = 0
            "log": tf.reduce_mean(tf.where(x > 0, tf.math.log(x * self.b), 0.0)),  # NaN for b
            "line": 5.0 * tf.reduce_sum(self.a) + 7.0 * self.b,
        }


def _found(values, replicas, micro_batches=1, groups=None):
    with replicas.scope():
        model = _Model()
    groups = groups or {"optimizer": model.trainable_variables}
    backward = Backward(
        model, lambda b: model(b, training=True), groups, tuple(groups), LossWeights({"line": 3.0}),
        recording=False, jit=False,
    )  # fmt: skip
    evidence = [{"x": tf.constant(one, tf.float32)} for one in values]
    return find_nonfinite(replicas, backward, evidence, micro_batches, 4, tuple(groups))


@pytest.mark.parametrize(
    ("count", "micro_batches", "values"),
    [
        (1, 1, [[4.0, 0.0]]),
        (2, 1, [[4.0, 1.0], [0.0, 1.0]]),
        (1, 2, [[4.0, 1.0], [0.0, 1.0]]),
        (2, 2, [[4.0, 1.0], [1.0, 0.0], [4.0, 1.0], [1.0, 1.0]]),
    ],
)
def test_losses_and_variables_are_found_in_any_part(count, micro_batches, values, replicas):
    (found,) = _found(values, replicas(count), micro_batches)

    assert (found.group, found.losses) == ("optimizer", ("root", "log"))
    assert found.variables == ("model/a", "model/b")
    assert not np.isfinite(found.largest)


def test_finite_gradients_have_a_largest_element(replicas):
    (found,) = _found([[4.0, 1.0]], replicas(1))

    assert (found.losses, found.variables) == ((), ())
    assert found.largest == pytest.approx(3 * 7.0)  # times the weight of the loss


def test_a_replica_without_examples_is_not_at_fault(replicas):
    (found,) = _found([[4.0, 1.0], []], replicas(2))

    assert (found.losses, found.largest) == ((), pytest.approx(3 * 7.0))
