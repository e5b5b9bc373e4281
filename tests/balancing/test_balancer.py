"""Balancers in a run: names, checkpoints, skipped updates, fixed weights and schedules."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.balancing.two_heads import (
    RATE,
    Plain,
    TwoHeads,
    assert_close,
    dataset,
    trained,
)
from tests.toys import Line, make_step, rows, run
from tfloss.balancing import GradNorm, PCGrad, Uncertainty
from tfloss.engine.engine import Engine
from tfloss.errors import LossError, ModelError

NAMES = ["head/a", "b", "c"]
MAKE = {
    "Uncertainty": lambda: Uncertainty(NAMES, classification=["b"]),
    "GradNorm": lambda: GradNorm(NAMES, "trunk/*"),
    "PCGrad": lambda: PCGrad(NAMES),
}


@pytest.mark.parametrize("count", [1, 2])
def test_fixed_weights_and_schedules_need_no_balancer(count, replicas):
    """0.5 a + t b + c, at the steps t = 0, 1 and 2."""
    weights = {"head/*": 0.5, "b": lambda step: tf.cast(step, tf.float32)}
    _, before, after, found = trained(weights, replicas(count), steps=3)
    model = Plain(before)
    for step in range(3):
        with tf.GradientTape() as tape:
            losses = model.losses(step)
            total = 0.5 * losses["head/a"] + step * losses["b"] + losses["c"]
        model.move(tape.gradient(total, [v.value for v in model.variables]))
    assert found[-1]["losses/total"] == pytest.approx(float(total), rel=1e-5)
    assert_close(after, model.weights(), before)


CASES = [("graph", "GradNorm", 1)]
CASES += [
    pytest.param(mode, name, count, marks=pytest.mark.slow)
    for name in MAKE
    for mode, count in (("graph", 1), ("loop", 1), ("graph", 2))
    if (mode, name, count) not in CASES
]


@pytest.mark.parametrize(("mode", "name", "count"), CASES)
def test_a_resumed_run_has_the_same_bits(mode, name, count, tmp_path, replicas):
    def train(workdir, steps):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(1)
        strategy = replicas(count)
        with strategy.scope():
            model, optimizer = TwoHeads(), keras.optimizers.Adam(RATE)
        trainer = tfloss.Trainer(
            model,
            optimizer,
            strategy=strategy,
            workdir=workdir,
            loss_weights=MAKE[name](),
            jit="loop" if mode == "loop" else False,
            hooks=[tfloss.hooks.SaveCheckpoint(tfloss.Every(steps=100))],
            default_hooks=False,
        )
        trainer.train(dataset(), steps)
        return {k: v.numpy() for k, v in trainer.state.variables().items()}

    whole = train(tmp_path / "whole", 6)
    train(tmp_path / "parts", 4)
    resumed = train(tmp_path / "parts", 6)
    assert whole.keys() == resumed.keys()
    assert any(key.startswith("loss_weights/") for key in whole) == (name != "PCGrad")
    for key, value in whole.items():
        np.testing.assert_array_equal(value, resumed[key], err_msg=key)


def test_a_checkpoint_of_another_order_of_the_losses_fits(tmp_path):
    """The numbers are saved by name."""

    def train(names, steps):
        keras.utils.clear_session(free_memory=False)
        trainer = tfloss.Trainer(
            TwoHeads(),
            keras.optimizers.SGD(RATE),
            workdir=tmp_path,
            loss_weights=GradNorm(names),
            jit=False,
            default_hooks=False,
            hooks=[tfloss.hooks.SaveCheckpoint(tfloss.Every(steps=100))],
        )
        trainer.train(dataset(), steps)
        return {k: v.numpy() for k, v in trainer.train_step.extra_variables().items()}

    before = train(NAMES, 3)
    assert before == train(NAMES[::-1], 3)
    assert len({before[f"loss_weights/weight/{name}"].item() for name in NAMES}) == 3


def test_a_skipped_update_leaves_the_numbers_as_they_are():
    def report(model, batch, y):
        return {"a": tf.reduce_mean(y), "b": tf.reduce_mean(y**2)}

    balancer = GradNorm(["a", "b"], optimizer=keras.optimizers.SGD(0.1))
    step, iterator = make_step(
        lambda: Line(report),
        rows([1.0, 2.0, float("nan")], 1),
        loss_weights=balancer,
        skip_nonfinite=True,
    )
    engine = Engine(step)
    engine.run(iterator, 2)
    before = {k: v.numpy() for k, v in balancer.state().items()}
    assert before["loss_weights/weight/a"] != 1.0
    logs = engine.run(iterator, 1)
    assert logs.rows()[0][logs.names.index("skipped")] == 1.0
    assert {k: v.numpy() for k, v in balancer.state().items()} == before


def test_the_averages_are_those_of_the_weights():
    """The balancer's own numbers are not averaged."""

    def report(model, batch, y):
        return {"a": 3.0 * tf.reduce_mean(y), "b": tf.reduce_mean(y)}

    balancer = GradNorm(["a", "b"], alpha=0.0, optimizer=keras.optimizers.SGD(0.1))
    step, iterator = make_step(
        lambda: Line(report), rows([0.5], 1), loss_weights=balancer, ema=tfloss.Ema(0.5)
    )
    engine, average, weights = Engine(step), 1.0, []
    for _ in range(3):
        engine.run(iterator, 1)
        weights.append(float(step.model.w.numpy()))
        average += 0.5 * (weights[-1] - average)
    assert len(set(weights)) == 3
    found = step.extra_variables()
    (mean,) = [v for k, v in found.items() if k.startswith("ema/")]
    assert float(mean.numpy()) == pytest.approx(average)


@pytest.mark.slow
def test_a_loss_scale_does_not_change_the_norms():
    """Also where the gradients of single losses overflow: the numbers stay finite."""

    def train(precision):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(1)
        balancer = GradNorm(NAMES[:2], optimizer=keras.optimizers.SGD(0.05))

        def make():
            model = TwoHeads()
            model.a.dtype_policy = model.b.dtype_policy = "float32"
            return model

        step, _, _ = run(make, dataset(), 4, loss_weights=balancer, precision=precision)
        return [float(step.extra_variables()[f"loss_weights/weight/{k}"]) for k in NAMES[:2]]

    plain = train(None)
    assert abs(plain[0] - 1.0) > 0.01
    assert train("mixed_float16") == pytest.approx(plain, rel=2e-2)


def test_names_that_are_no_losses_are_refused_before_training():
    def report(model, batch, y):
        return {"a": tf.reduce_mean(y), "b": tf.reduce_mean(y**2)}

    with pytest.raises(LossError, match=r"balances 'aa', but there is no such loss.*: a, b"):
        run(lambda: Line(report), rows([1.0], 1), loss_weights=Uncertainty(["aa", "a", "b"]))
    with pytest.raises(LossError, match=r"needs a list of names of losses, got 'ab'"):
        Uncertainty("ab")
    with pytest.raises(LossError, match="at least two different losses, got a, a"):
        GradNorm(["a", "a"])


def test_a_balancer_belongs_to_one_trainer():
    balancer = Uncertainty(["a", "b"])

    def report(model, batch, y):
        return {"a": tf.reduce_mean(y), "b": tf.reduce_mean(y**2)}

    run(lambda: Line(report), rows([1.0], 1), loss_weights=balancer)
    with pytest.raises(ModelError, match=r"This Uncertainty belongs to another Trainer"):
        run(lambda: Line(report), rows([1.0], 1), loss_weights=balancer)


def test_an_optimizer_that_cannot_be_used_is_refused():
    with pytest.raises(ValueError, match="LossScaleOptimizer"):
        inner = keras.optimizers.Adam()
        Uncertainty(["a", "b"], optimizer=keras.optimizers.LossScaleOptimizer(inner))


def test_what_depends_on_the_arguments_is_traced_again_and_compared_between_workers():
    one, other = GradNorm(["a", "b"], alpha=1.0), GradNorm(["a", "b"], alpha=2.0)
    assert one.signature() != other.signature()
    assert one.described() != other.described()
    assert one.described()["class"] == "GradNorm"
