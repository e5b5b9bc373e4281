"""Kendall et al. (2018), against their formula in plain TensorFlow with automatic derivatives."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.balancing.two_heads import HOW, STEPS, Plain, assert_close, trained
from tfloss.balancing import Uncertainty
from tfloss.errors import LossError


def plain(before):
    """The sum of loss / (2 sigma^2) + log sigma, or loss / sigma^2 + log sigma (eq. 7 and 10)."""
    model = Plain(before)
    logs = {"head/a": tf.Variable(0.0), "b": tf.Variable(0.0)}  # of sigma^2
    for step in range(STEPS):
        with tf.GradientTape() as tape:
            found = model.losses(step)
            sigma = {name: tf.exp(one / 2) for name, one in logs.items()}
            total = found["head/a"] / (2 * sigma["head/a"] ** 2) + tf.math.log(sigma["head/a"])
            total += 0.5 * found["b"] / sigma["b"] ** 2 + tf.math.log(sigma["b"])
            total += found["c"]
        of_model, of_logs = tape.gradient(total, ([v.value for v in model.variables], logs))
        model.move(of_model)
        for name, one in logs.items():
            one.assign_sub(0.3 * of_logs[name])
    return model, {name: float(one) for name, one in logs.items()}, float(total)


@pytest.mark.parametrize(("mode", "count"), HOW)
def test_weights_and_log_variances_are_those_of_the_paper(mode, count, replicas):
    balancer = Uncertainty(
        ["head/a", "b"],
        classification=["b"],
        optimizer=keras.optimizers.SGD(0.3),
        weights={"b": 0.5},
    )
    step, before, after, rows = trained(balancer, replicas(count), mode)
    model, logs, total = plain(before)
    assert_close(after, model.weights(), before)
    assert min(map(abs, logs.values())) > 0.05
    saved = step.extra_variables()
    for name, expected in logs.items():
        assert saved[f"loss_weights/log_variance/{name}"].numpy() == pytest.approx(expected, 1e-5)
    assert rows[-1]["losses/total"] == pytest.approx(total, rel=1e-5)


def test_the_weight_is_logged_with_the_term_in_the_objective(replicas):
    sgd = keras.optimizers.SGD(1.0)
    _, _, _, rows = trained(Uncertainty(["head/a", "b"], optimizer=sgd), replicas(1), steps=2)
    first, second = rows
    assert first["loss_weights/b"] == 0.5
    assert first["weighted_losses/b"] == pytest.approx(0.5 * first["losses/b"])
    log_variance = -(0.5 - 0.5 * first["losses/b"])
    assert second["loss_weights/b"] == pytest.approx(0.5 * np.exp(-log_variance), rel=1e-5)
    assert second["weighted_losses/b"] == pytest.approx(
        second["loss_weights/b"] * second["losses/b"] + log_variance / 2, rel=1e-5
    )


def test_a_classification_that_is_not_balanced_is_refused():
    with pytest.raises(LossError, match=r"must be a list of some of its losses: a, b"):
        Uncertainty(["a", "b"], classification=["c"])
    with pytest.raises(LossError, match="must be a list"):
        Uncertainty(["a", "b"], classification="a")
