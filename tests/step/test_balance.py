"""A balancer's place in a step: before the clipping, after the update, and only in its passes."""

import keras
import pytest
import tensorflow as tf

import tfloss
from tests.toys import Line, make_step, rows, run
from tfloss.balancing import Balancer, PCGrad, Uncertainty
from tfloss.engine.engine import Engine


def _report(model, batch, y):
    return {"a": tf.reduce_mean(y), "b": -2.0 * tf.reduce_mean(y)}


def test_the_combined_gradient_is_clipped_and_its_norm_is_logged():
    """Of the gradients 1 and -2, each is against the other, so nothing is left."""
    step, found, _ = run(
        lambda: Line(_report), rows([1.0], 1), loss_weights=PCGrad(), clip_norm=0.5
    )
    assert found["gradient_norm"] == 0.0
    assert step.model.w.numpy() == 1.0
    step, found, _ = run(lambda: Line(_report), rows([1.0], 1), clip_norm=0.5)
    assert found["gradient_norm"] == 1.0
    assert step.model.w.numpy() == pytest.approx(1.0 + 0.1 * 0.5)


class Tripling(Balancer):
    """Multiplies the gradient of the first loss by 3, and counts the updates that it sees."""

    def __init__(self):
        super().__init__(["a", "b"], None, shared="w")

    def create_variables(self):
        self.seen = keras.Variable(
            0.0, trainable=False, name="seen", aggregation="only_first_replica"
        )

    def state(self):
        return {"loss_weights/seen": self.seen}

    def factors(self, gradients, step):
        assert gradients.losses == ("a", "b")
        return tf.constant([3.0, 1.0])

    def update(self, losses, gradients, step):
        products = gradients.products  # [[1, -2], [-2, 4]] x^2
        self.seen.assign(self.seen + losses["b"] + 100.0 * products[0, 1])


@pytest.mark.parametrize("count", [1, 2])
def test_losses_and_gradients_are_those_of_the_global_batch(count, replicas):
    balancer = Tripling()
    step, _, _ = run(
        lambda: Line(_report),
        rows([1.0, 3.0], 2),
        strategy=replicas(count),
        loss_weights=balancer,
    )
    assert step.model.w.numpy() == pytest.approx(1.0 - 0.1 * 2.0 * (3.0 - 2.0))
    assert balancer.seen.numpy() == pytest.approx(-4.0 + 100.0 * 2.0 * -4.0)


class TwoPasses(tfloss.TrainStep):
    def step(self, batch):
        first = self.minimize(lambda b: {"other": tf.reduce_mean(self.model.w * b["x"])}, batch)
        return {**first, **self.minimize(self.forward, batch)}


def test_a_pass_without_its_losses_is_left_alone():
    balancer = Uncertainty(["a", "b"], optimizer=keras.optimizers.SGD(1.0))
    step, iterator = make_step(
        lambda: Line(_report), rows([1.0], 1), step=TwoPasses, loss_weights=balancer
    )
    Engine(step).run(iterator, 1)
    # The first pass moves w to 0.9, so a = 0.9. The update is 1/2 - a/2.
    assert balancer.state()["loss_weights/log_variance/a"].numpy() == pytest.approx(-0.05)
