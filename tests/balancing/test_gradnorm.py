"""Chen et al. (2018), algorithm 1, in plain TensorFlow with automatic derivatives."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.balancing.two_heads import HOW, STEPS, Plain, assert_close, trained
from tests.toys import Line, rows, run
from tfloss.balancing import GradNorm
from tfloss.errors import LossError, NonFiniteLossError

NAMES = ["head/a", "b", "c"]


def plain(before, alpha, rate):
    """The algorithm, literally: L_grad is differentiated by the weights."""
    model, first = Plain(before), None
    weights = [tf.Variable(1.0) for _ in NAMES]
    shared = [v.value for v in model.trunk.trainable_variables]
    for step in range(STEPS):
        with tf.GradientTape(persistent=True) as outer:
            with tf.GradientTape(persistent=True) as inner:
                values = [model.losses(step)[name] for name in NAMES]
                weighted = [w * value for w, value in zip(weights, values, strict=True)]
                total = tf.add_n(weighted)
            norms = [tf.linalg.global_norm(inner.gradient(one, shared)) for one in weighted]
            if first is None:
                first = [float(value) for value in values]
            ratios = [float(value) / f for value, f in zip(values, first, strict=True)]
            inverse = [ratio / np.mean(ratios) for ratio in ratios]
            mean = tf.stop_gradient(tf.add_n(norms) / len(norms))
            terms = [
                tf.abs(g - tf.stop_gradient(mean * r**alpha))
                for g, r in zip(norms, inverse, strict=True)
            ]
            imbalance = tf.add_n(terms)
        gradients = inner.gradient(total, [v.value for v in model.variables])
        for weight, slope in zip(weights, outer.gradient(imbalance, weights), strict=True):
            weight.assign_sub(rate * slope)
        model.move(gradients)
        scale = len(weights) / sum(float(w) for w in weights)
        for weight in weights:
            weight.assign(weight * scale)
    return model, [float(w) for w in weights]


@pytest.mark.parametrize(("mode", "count"), HOW)
def test_weights_are_those_of_the_algorithm(mode, count, replicas):
    sgd = keras.optimizers.SGD(0.05)
    balancer = GradNorm(NAMES, "trunk/*", alpha=1.5, optimizer=sgd)
    step, before, after, _ = trained(balancer, replicas(count), mode)
    model, weights = plain(before, 1.5, 0.05)
    assert_close(after, model.weights(), before)
    saved = step.extra_variables()
    found = [saved[f"loss_weights/weight/{name}"].numpy() for name in NAMES]
    assert found == pytest.approx(weights, rel=1e-5)
    assert max(abs(w - 1.0) for w in weights) > 0.05
    assert sum(found) == pytest.approx(3.0)


@pytest.mark.slow
def test_micro_batches_are_one_batch(replicas):
    found = []
    for accumulate in (1, 2):
        balancer = GradNorm(NAMES, optimizer=keras.optimizers.SGD(0.05))
        _, before, after, rows = trained(balancer, replicas(1), accumulate=accumulate)
        found.append((after, rows[-1]["loss_weights/b"]))
    assert_close(found[0][0], found[1][0], before)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)


def test_one_weight_by_hand(replicas):
    """With one weight w, the losses 3w and w have gradients 3 and 1: mean 2, slopes 3 and -1."""

    def report(model, batch, y):
        return {"a": 3.0 * tf.reduce_mean(y), "b": tf.reduce_mean(y)}

    balancer = GradNorm(["a", "b"], alpha=0.0, optimizer=keras.optimizers.SGD(0.1))
    step, _, _ = run(lambda: Line(report), rows([1.0, 1.0], 2), loss_weights=balancer)
    saved = step.extra_variables()
    a, b = 1.0 - 0.1 * 3.0, 1.0 + 0.1 * 1.0
    assert saved["loss_weights/weight/a"].numpy() == pytest.approx(2 * a / (a + b))
    assert saved["loss_weights/first/a"].numpy() == 3.0


@pytest.mark.parametrize("mode", ["graph", pytest.param("loop", marks=pytest.mark.slow)])
def test_a_loss_that_is_not_positive_is_named(mode):
    """The loss b = w x - 1 is negative at the second step. With alpha = 0 it may be."""

    def report(model, batch, y):
        return {"a": tf.reduce_mean(y) + 5.0, "b": tf.reduce_mean(y) - 1.0}

    def train(alpha, values):
        keras.utils.clear_session(free_memory=False)
        balancer = GradNorm(["a", "b"], alpha=alpha, optimizer=keras.optimizers.SGD(0.1))
        trainer = tfloss.Trainer(
            Line(report),
            keras.optimizers.SGD(0.01),
            loss_weights=balancer,
            jit="loop" if mode == "loop" else False,
            default_hooks=False,
            hooks=[tfloss.hooks.NaNGuard()],
        )
        trainer.train(rows(values, 1), 2)
        return trainer

    with pytest.raises(NonFiniteLossError, match="Loss 'loss_weights/b' .* at step 2") as caught:
        train(1.5, [2.0, 0.5])
    assert any("'b' must be positive at first, and never" in x for x in caught.value.__notes__)
    assert caught.value.losses["b"] < 0.0
    with pytest.raises(NonFiniteLossError, match="Loss 'loss_weights/b' is not finite at step 1"):
        train(1.5, [1.0, 2.0])  # it begins with 0
    assert train(0.0, [2.0, 0.5]).step == 2


def test_losses_of_two_forward_passes_are_refused(replicas):
    balancer = GradNorm([*NAMES, "other"])
    with pytest.raises(LossError, match=r"has no 'other'\. It reports: head/a, b, c"):
        trained(balancer, replicas(1), steps=1)


def test_losses_that_share_no_variable_are_refused(replicas):
    with pytest.raises(LossError, match=r"no variable that matches 'a/\*' and that two"):
        trained(GradNorm(NAMES, "a/*"), replicas(1), steps=1)
    with pytest.raises(ValueError, match=r"GradNorm: 'trnk/\*' matches no trained variable"):
        trained(GradNorm(NAMES, "trnk/*"), replicas(1), steps=1)


def test_a_negative_alpha_is_refused():
    with pytest.raises(ValueError, match="alpha must be at least 0"):
        GradNorm(["a", "b"], alpha=-1.0)
