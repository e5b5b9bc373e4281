import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.toys import Line, rows
from tfloss import hooks, summary
from tfloss.errors import CheckpointError, DataError, LossError, ModelError, NonFiniteLossError
from tfloss.hooks import Every, Hook

ROOT = Path(__file__).parents[2]
DATA = rows([1.0, 2.0, 3.0, 4.0], 4)


class Witness(Hook):
    """Writes down all that happens to it."""

    def __init__(self, every=None):
        self.every = every
        self.calls, self.logs, self.ended = [], [], []

    def after_step(self, step):
        assert self.trainer.step == step == int(self.trainer.train_step.counter.numpy())
        self.calls.append(step)

    def on_log(self, step, scalars, summaries):
        self.logs.append((step, dict(scalars), [s.name for s in summaries]))

    def after_train(self):
        self.ended.append(self.trainer.error)


def trainer(model=None, *, default_hooks=False, strategy=None, rate=0.1, **options):
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        model = (model or Line)()
        optimizer = keras.optimizers.SGD(rate)
    return tfloss.Trainer(
        model, optimizer, strategy=strategy, default_hooks=default_hooks, **options
    )


# The loop


@pytest.mark.parametrize("steps_per_call", ["auto", 1, 7, 50])
def test_hooks_run_at_exactly_their_steps(steps_per_call):
    first, second = Witness(Every(steps=137)), Witness(Every(percent=25))
    found = trainer(rate=0.0, hooks=[first, second], steps_per_call=steps_per_call, log_every=50)
    assert found.train(DATA, steps=300).step == 300
    assert first.calls == [137, 274]
    assert second.calls == [75, 150, 225, 300]
    assert [step for step, _, _ in first.logs] == [50, 100, 150, 200, 250, 300]
    assert first.ended == [None]


def test_the_number_of_steps_a_call_does_not_change_the_result():
    results = []
    for steps_per_call in (1, 9, "auto"):
        keras.utils.set_random_seed(0)
        one = trainer(
            lambda: Line(lambda m, b, y: tf.reduce_mean((y - 2.0) ** 2)),
            rate=0.001,
            steps_per_call=steps_per_call,
        )
        result = one.train(DATA, steps=40)
        results.append((one.model.w.numpy(), result.losses))
    assert results[0] == results[1] == results[2]


def test_what_is_logged_is_the_mean_over_the_window():
    witness = Witness()
    data = rows(np.arange(1.0, 9.0), 1)  # losses 1 to 8, w stays 1
    trainer(rate=0.0, hooks=[witness], log_every=3).train(data, steps=8)
    assert [(s, v["losses/mean"]) for s, v, _ in witness.logs] == [(3, 2.0), (6, 5.0), (8, 7.5)]
    assert witness.logs[0][1]["learning_rate"] == 0.0
    assert witness.logs[0][1]["examples_per_second"] > 0


def test_every_step_can_be_logged():
    def report(m, b, y):
        summary.scalar("first", y[0])
        return {"mean": tf.reduce_mean(y)}

    witness = Witness()
    one = trainer(lambda: Line(report), rate=0.0, hooks=[witness], log_every=4, log_every_step=True)
    one.train(rows(np.arange(1.0, 7.0), 1), steps=6)
    assert [(s, v["losses/mean"], v["first"]) for s, v, _ in witness.logs] == [
        (k, float(k), float(k)) for k in range(1, 7)
    ]


def test_summaries_are_written_on_due_steps_only():
    def report(m, b, y):
        summary.histogram("y", y)
        summary.scalar("step", tfloss.current_step())
        return {"mean": tf.reduce_mean(y)}

    witness = Witness()
    trainer(lambda: Line(report), hooks=[witness], log_every=10).train(DATA, steps=25)
    assert [(s, names) for s, _, names in witness.logs] == [(10, ["y"]), (20, ["y"]), (25, ["y"])]
    assert [v["step"] for _, v, _ in witness.logs] == [9.0, 19.0, 24.0]


def test_result_is_of_the_last_step():
    one = trainer(rate=0.1)
    result = one.train(DATA, steps=2)
    assert result.losses == pytest.approx({"mean": 0.75 * 2.5, "total": 0.75 * 2.5})
    assert one.model.w.numpy() == pytest.approx(0.5)


def test_a_second_call_goes_on_from_the_first_in_the_data_too():
    witness = Witness()
    one = trainer(rate=0.0, hooks=[witness], log_every=1)
    data = rows(np.arange(1.0, 9.0), 1)
    one.train(data, steps=3)
    one.train(data, steps=5)
    assert [v["losses/mean"] for _, v, _ in witness.logs] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert one.train(data, steps=4).losses == {}


def test_a_hook_can_stop_training_between_logs(capsys):
    class Stop(Witness):
        def after_step(self, step):
            self.trainer.stop("enough")

    stop = Stop(Every(steps=7))
    result = trainer(hooks=[stop], rate=0.0).train(DATA, steps=100)
    assert (result.step, result.reason) == (7, "enough")
    assert [s for s, _, _ in stop.logs] == [7]
    assert capsys.readouterr().err == "tfloss: stopped at step 7: enough\n"


def test_a_stop_at_the_last_step_is_no_early_stop(capsys):
    class Stop(Hook):
        every = Every(steps=3)

        def after_step(self, step):
            self.trainer.stop("enough")

    assert trainer(hooks=[Stop()]).train(DATA, steps=3).reason is None
    assert capsys.readouterr().err == ""


def test_a_resumed_run_that_is_out_of_patience_says_so(tmp_path, capsys):
    def make():
        stopping = hooks.EarlyStopping("losses/total", patience=1)
        keeping = hooks.SaveCheckpoint(Every(steps=1))
        return trainer(rate=0.0, hooks=[stopping, keeping], workdir=tmp_path, log_every=1)

    line = "losses/total has not fallen below 2.5 (step 1) in the last evaluation"
    assert make().train(DATA, steps=9).step == 2  # with no learning rate the loss stays the same
    assert capsys.readouterr().err.splitlines()[-1] == f"tfloss: stopped at step 2: {line}"
    result = make().train(DATA, steps=9)
    assert (result.step, result.reason) == (2, line)
    assert capsys.readouterr().err.splitlines()[-1] == f"tfloss: stopped at step 2: {line}"


def test_a_hook_whose_trigger_is_a_number_is_told_what_to_write(tmp_path):
    for every, advice in [
        (5, "steps=5)"),
        (2.5, "epochs=2.5)"),
        (0, "steps=100), for example"),
        ("epoch", "steps=100), for example"),
    ]:
        said = f"every={every!r} is not a trigger; write Every({advice}."
        one = trainer(hooks=[Witness(every)], workdir=tmp_path)
        with pytest.raises(ValueError, match=re.escape(f"Witness: {said}")):
            one.train(DATA, steps=9)
        assert not one.optimizer.built  # at once: nothing was made or restored for it
        with pytest.raises(ValueError, match=re.escape(f"SaveCheckpoint: {said}")):
            hooks.SaveCheckpoint(every)
        with pytest.raises(ValueError, match=re.escape(f"Evaluate: {said}")):
            hooks.Evaluate(DATA, {}, every=every)


def test_hooks_end_even_if_one_of_them_fails():
    class Fails(Hook):
        every = Every(steps=2)

        def after_step(self, step):
            raise RuntimeError("mine")

        def after_train(self):
            raise RuntimeError("another")

    witness = Witness()
    with pytest.raises(RuntimeError, match="mine"):
        trainer(hooks=[Fails(), witness]).train(DATA, steps=5)
    assert str(witness.ended[0]) == "mine"


@pytest.mark.parametrize("count", [2, 4])
def test_replicas_end_with_the_same_weights(count, replicas):
    def build():
        return Line(lambda m, b, y: tf.reduce_mean((y - 2.0) ** 2))

    weights = []
    for strategy in (replicas(1), replicas(count)):
        one = trainer(build, strategy=strategy, rate=0.01)
        one.train(rows(np.arange(8.0), 8), steps=20)
        weights.append(one.model.w.numpy())
    assert weights[0] == pytest.approx(weights[1], rel=1e-5)


def test_data_may_be_a_function_of_an_input_context():
    seen = []

    def input_fn(context):
        seen.append(context.num_replicas_in_sync)
        return DATA

    assert trainer().train(input_fn, steps=2).step == 2
    assert seen == [1]


# What is frozen in a trace


class _Two(keras.Model):
    def __init__(self):
        super().__init__(name="two")
        self.a, self.b = keras.layers.Dense(1, name="a"), keras.layers.Dense(1, name="b")

    def call(self, batch, training=False):
        y = self.b(self.a(batch["x"][:, None]))
        return tf.reduce_mean(y**2) if training else y


@pytest.mark.promise(16)
def test_freezing_between_two_calls_is_respected():
    one = trainer(_Two, rate=0.01)
    one.train(DATA, steps=1)
    one.model.a.trainable = False
    before = [one.model.a.kernel.numpy(), one.model.b.kernel.numpy()]
    one.train(DATA, steps=2)
    assert one.model.a.kernel.numpy() == before[0]
    assert one.model.b.kernel.numpy() != before[1]
    one.model.a.trainable = True
    one.train(DATA, steps=3)
    assert one.model.a.kernel.numpy() != before[0]


@pytest.mark.promise(16)
@pytest.mark.parametrize("count", [1, 2])
def test_a_layer_unfrozen_later_is_trained_and_the_slots_of_others_stay(count, replicas):
    strategy = replicas(count)
    with strategy.scope():
        model, optimizer = _Two(), keras.optimizers.Adam(0.01)
    one = tfloss.Trainer(model, optimizer, strategy=strategy, default_hooks=False)
    model.a.trainable = False
    one.train(DATA, steps=3)

    def slots():
        found = one.state.variables()
        return {k: v.numpy().copy() for k, v in found.items() if "/momentum" in k}

    before, frozen = slots(), model.a.kernel.numpy().copy()
    assert {name.split("/")[2] for name in before} == {"b"}
    model.a.trainable = True
    one.train_step.build(DATA.element_spec)
    after = slots()
    assert {name: after[name] for name in before} == before
    assert before["optimizer/two/b/kernel/momentum"] != 0.0
    assert after["optimizer/two/a/kernel/momentum"] == 0.0
    one.train(DATA, steps=4)
    assert model.a.kernel.numpy() != frozen
    assert optimizer.iterations.numpy() == 4


@pytest.mark.promise(16)
@pytest.mark.upstream
def test_upstream_ignores_freezing_after_tracing():
    model, optimizer = _Two(), keras.optimizers.SGD(0.01)
    model({"x": tf.ones([1])})

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            loss = model({"x": x}, training=True)
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)

    step(tf.ones([4]))
    model.a.trainable = False
    before = model.a.kernel.numpy()
    step(tf.ones([4]))
    assert model.a.kernel.numpy() != before


@pytest.mark.promise(16)
def test_the_step_is_traced_once():
    one = trainer()
    one.train(DATA, steps=30)
    one.train(DATA, steps=230)
    assert list(one._modes._engines) == ["graph"]  # too short a run to try others
    assert one._modes._engines["graph"].traces == 1  # it has no summaries to record


# Learning rate, resuming


class _Dropout(keras.Model):
    def __init__(self):
        super().__init__(name="net")
        self.blocks = [keras.layers.Dense(4, name="d0"), {"k": keras.layers.Dense(1, name="d1")}]
        self.bn = keras.layers.BatchNormalization(name="bn")
        self.drop = keras.layers.Dropout(0.5, name="drop")

    def call(self, batch, training=False):
        x = self.blocks[0](batch["x"][:, None])
        x = self.drop(self.bn(x, training=training), training=training)
        y = self.blocks[1]["k"](x)
        return tf.reduce_mean((y - 1.0) ** 2) if training else y


def _adam_trainer(workdir, **options):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(3)
    return tfloss.Trainer(
        _Dropout(), keras.optimizers.Adam(0.01), workdir=workdir, seed=5, **options
    )


@pytest.mark.promise(13)
def test_a_resumed_run_is_bit_for_bit_the_undisturbed_one(tmp_path):
    straight = _adam_trainer(tmp_path / "a")
    result = straight.train(DATA, steps=12)
    _adam_trainer(tmp_path / "b").train(DATA, steps=5)
    resumed = _adam_trainer(tmp_path / "b")
    for variable in resumed.model.variables:
        variable.assign(tf.ones_like(variable))
    second = resumed.train(DATA, steps=12)
    assert second == result
    names = straight.state.variables()
    for name, variable in resumed.state.variables().items():
        np.testing.assert_array_equal(variable.numpy(), names[name].numpy(), err_msg=name)


def test_a_step_may_have_more_variables_to_keep(tmp_path):
    class Counting(tfloss.TrainStep):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.seen = tf.Variable(0.0, trainable=False)

        def step(self, batch):
            self.seen.assign_add(2.0)
            return super().step(batch)

        def extra_variables(self):
            return {"seen": self.seen}

    for steps, before in ((2, 0.0), (5, 4.0)):
        one = trainer(workdir=tmp_path, hooks=[hooks.SaveCheckpoint()], train_step=Counting)
        if before:
            one.restore(DATA)
        assert one.train_step.seen.numpy() == before
        one.train(DATA, steps=steps)
    assert one.state.variables()["seen"] is one.train_step.seen
    assert one.train_step.seen.numpy() == 10.0


def test_resuming_says_so_and_a_finished_run_is_left_alone(tmp_path, capsys):
    trainer(workdir=tmp_path, default_hooks=True).train(DATA, steps=4)

    def times():
        return {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.name != ".lock"}

    before = times()
    capsys.readouterr()
    again = trainer(workdir=tmp_path, default_hooks=True)
    assert again.train(DATA, steps=4).step == 4
    assert "resuming at step 4" in capsys.readouterr().err
    assert times() == before


@pytest.mark.promise(28)
def test_a_changed_constant_learning_rate_applies_and_is_reported(tmp_path):
    trainer(workdir=tmp_path, hooks=[hooks.SaveCheckpoint()], rate=0.1).train(DATA, steps=1)
    second = trainer(workdir=tmp_path, rate=0.2)
    with pytest.warns(UserWarning, match="learning rate was 0.1 .* and is 0.2 now"):
        second.train(DATA, steps=2)
    assert second.model.w.numpy() == pytest.approx(1 - 0.1 * 2.5 - 0.2 * 2.5)


@pytest.mark.parametrize("rate", ["schedule", "constant"])
def test_a_schedule_may_follow_a_constant_rate_and_a_constant_rate_a_schedule(rate, tmp_path):
    def schedule():
        return keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.1, 0.2])

    first, then = (0.1, schedule()) if rate == "schedule" else (schedule(), 0.2)
    trainer(workdir=tmp_path, hooks=[hooks.SaveCheckpoint()], rate=first).train(DATA, steps=2)
    second = trainer(workdir=tmp_path, rate=then)
    assert second.restore(DATA) == 2
    before = second.model.w.numpy()
    second.train(DATA, steps=3)
    assert second.model.w.numpy() == pytest.approx(before - 0.2 * 2.5)


def test_restoring_by_a_batch_that_cannot_be_trained_on_says_so(tmp_path):
    trainer(workdir=tmp_path, hooks=[hooks.SaveCheckpoint()]).train(DATA, steps=1)
    with pytest.raises(KeyError) as raised:
        trainer(workdir=tmp_path).restore(DATA.map(lambda batch: {"image": batch["x"]}))
    assert "batches as train() takes them" in raised.value.__notes__[-1]


def _with(optimizer, workdir):
    mine = [hooks.SaveCheckpoint()]
    return tfloss.Trainer(Line(), optimizer, workdir=workdir, hooks=mine, default_hooks=False)


def test_a_checkpoint_of_another_optimizer_is_refused_in_plain_words(tmp_path):
    _with(keras.optimizers.Adam(0.1), tmp_path).train(DATA, steps=1)
    for optimizer, keeps in (
        (keras.optimizers.SGD(0.1), r"iteration\."),
        (keras.optimizers.SGD(0.1, momentum=0.9), r"iteration, momentum\."),
        (
            keras.optimizers.Adam(0.1, amsgrad=True),
            r"iteration, momentum, velocity, velocity_hat\.",
        ),
        (keras.optimizers.Nadam(0.1), r"iteration, momentum, u_product, velocity\."),
    ):
        one = _with(optimizer, tmp_path)
        match = (
            "written with another optimizer. There 'optimizer' keeps iteration, momentum, "
            rf"velocity; this one \({type(optimizer).__name__}\) keeps .*{keeps}.*load_weights"
        )
        with pytest.raises(CheckpointError, match=match):
            one.train(DATA, steps=2)
        assert one.model.w.numpy() == 1.0
    assert _with(keras.optimizers.AdamW(0.1), tmp_path).train(DATA, steps=2).step == 2


def test_a_changed_model_is_not_taken_for_another_optimizer(tmp_path):
    _with(keras.optimizers.Adam(0.1), tmp_path).train(DATA, steps=1)
    other = tfloss.Trainer(_Two(), keras.optimizers.SGD(0.1), workdir=tmp_path)
    with pytest.raises(CheckpointError, match="not in the checkpoint: model/two/a/kernel"):
        other.train(DATA, steps=2)


def test_the_state_of_hooks_is_resumed(tmp_path):
    class Counts(Hook):
        every = Every(steps=2)

        def after_step(self, step):
            self.state["count"] = self.state.get("count", 0) + 1

    for steps, expected in ((4, 2), (10, 5)):
        counts = Counts()
        trainer(workdir=tmp_path, hooks=[counts, hooks.SaveCheckpoint()]).train(DATA, steps=steps)
        assert counts.state == {"count": expected}


def test_restore_without_training(tmp_path):
    trainer(workdir=tmp_path, hooks=[hooks.SaveCheckpoint()]).train(DATA, steps=2)
    again = trainer(workdir=tmp_path)
    assert again.restore(DATA) == 2
    assert again.model.w.numpy() == pytest.approx(0.5)


# Another algorithm, with everything around it


class _Pair(keras.Model):
    """A generator and a critic of one weight each: what one `minimize` can't train."""

    def __init__(self):
        super().__init__(name="pair")
        self.g = self.add_weight(name="g", shape=(), initializer="zeros")
        self.d = self.add_weight(name="d", shape=(), initializer="ones")
        self.built = True

    def judge(self, batch):
        real, fake = tf.reduce_mean(batch["x"]), tf.stop_gradient(tf.identity(self.g))
        summary.scalar("gap", real - fake)
        return {"d": self.d * (fake - real) + 0.5 * self.d**2}

    def fool(self, batch):
        return {"g": -tf.stop_gradient(tf.identity(self.d)) * self.g}


class _Gan(tfloss.TrainStep):
    def step(self, batch):
        m = self.model
        d = self.minimize(m.judge, batch, group="d")
        g = self.minimize(m.fool, batch, group="g")
        return {**d, **g}


@pytest.mark.parametrize("count", [1, 2])
def test_a_gan_keeps_hooks_checkpoints_and_summaries(count, replicas, tmp_path):
    def gan(workdir):
        strategy = replicas(count)
        with strategy.scope():
            model = _Pair()
            rules = {
                "d": (keras.optimizers.Adam(0.1), [model.d]),
                "g": (keras.optimizers.SGD(0.1), [model.g]),
            }
        witness = Witness(Every(steps=7))
        mine = [witness, hooks.SaveCheckpoint()]
        return witness, tfloss.Trainer(
            model,
            rules,
            strategy=strategy,
            workdir=workdir,
            hooks=mine,
            default_hooks=False,
            train_step=_Gan,
            log_every=10,
        )

    witness, straight = gan(tmp_path / "a")
    result = straight.train(DATA, steps=30)
    assert set(result.losses) == {"d", "g", "total"}
    assert witness.calls == [7, 14, 21, 28]
    assert {"gap", "learning_rate/d", "learning_rate/g"} < set(witness.logs[0][1])
    assert straight.model.g.numpy() > 1.0
    gan(tmp_path / "b")[1].train(DATA, steps=13)
    resumed = gan(tmp_path / "b")[1]
    assert resumed.train(DATA, steps=30) == result
    for name, variable in straight.state.variables().items():
        np.testing.assert_array_equal(
            variable.numpy(), resumed.state.variables()[name].numpy(), err_msg=name
        )


# Update rules


def test_epochs_and_examples_count_all_micro_batches():
    by_epoch, by_examples = Witness(Every(epochs=1)), Witness(Every(examples=16))
    data = tf.data.Dataset.from_tensor_slices({"x": np.ones(32, np.float32)}).batch(4, True)
    one = trainer(accumulate=2, hooks=[by_epoch, by_examples])
    with pytest.raises(DataError, match="ended after 8 batches, at step 4 of 6"):
        one.train(data, steps=6)
    assert by_epoch.calls == [4] and by_examples.calls == [2, 4]


@pytest.mark.promise(13)
@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_all_rules_resume_bit_for_bit(count, replicas, tmp_path):
    def make(workdir):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(3)
        strategy = replicas(count)
        with strategy.scope():
            inputs = keras.Input([1], name="x")
            hidden = keras.layers.Dropout(0.3)(keras.layers.Dense(4, "tanh", name="a")(inputs))
            net = keras.Model(inputs, keras.layers.Dense(1, name="b")(hidden))
            model = Line(lambda m, b, y: {"a": _error(net, b), "b": _error(net, b)})
            model.net = net
            groups = {
                "a": (keras.optimizers.Adam(0.01), lambda m: net.get_layer("a")),
                "b": tfloss.Group(keras.optimizers.SGD(0.1), lambda m: net.get_layer("b"), every=2),
            }
        return tfloss.Trainer(
            model,
            groups,
            strategy=strategy,
            workdir=workdir,
            seed=1,
            accumulate=2,
            precision="mixed_float16",
            ema=0.9,
            clip_norm=1.0,
            skip_nonfinite=True,
            hooks=[hooks.SaveCheckpoint()],
            default_hooks=False,
        )

    def _error(net, batch):
        return tf.reduce_mean(tf.cast(net(batch["x"][:, None], training=True), tf.float32) ** 2)

    straight = make(tmp_path / "a")
    straight.train(DATA, steps=9)
    make(tmp_path / "b").train(DATA, steps=4)
    resumed = make(tmp_path / "b")
    resumed.train(DATA, steps=9)
    found = resumed.state.variables()
    assert {"loss_scale/value", "skipped", "ema/line/w"} < set(found)
    for name, variable in straight.state.variables().items():
        np.testing.assert_array_equal(variable.numpy(), found[name].numpy(), err_msg=name)


def test_averages_are_evaluated_and_exported_on_request(tmp_path):
    one = trainer(ema=0.5)
    error = tfloss.metric(keras.metrics.Mean(), lambda b, p: p["y"])
    with pytest.raises(ValueError, match="no averages: make the Trainer with ema=0.999"):
        trainer().evaluate(DATA.take(1), {"y": error}, ema=True)
    one.train(DATA, steps=1)  # w: 1 -> 0.75; its average 0.875; mean of x 2.5
    assert one.evaluate(DATA.take(1), {"y": error})["y"] == pytest.approx(2.5 * 0.75)
    assert one.evaluate(DATA.take(1), {"y": error}, ema=True)["y"] == pytest.approx(2.5 * 0.875)
    with one.averaged():
        tfloss.export(one.model, tmp_path / "e", inputs={"x": tf.TensorSpec([None])})
    served = tf.saved_model.load(str(tmp_path / "e")).signatures["serving_default"]
    assert float(served(x=tf.constant([8.0]))["y"][0]) == pytest.approx(7.0)
    assert one.model.w.numpy() == pytest.approx(0.75)


def test_hooks_evaluate_and_export_the_averages(tmp_path):
    error = tfloss.metric(keras.metrics.Mean(), lambda b, p: p["y"])
    seen = []
    one = trainer(
        ema=0.5,
        workdir=tmp_path,
        hooks=[
            hooks.Evaluate(DATA.take(1), {"y": error}, every=Every(steps=1), ema=True),
            hooks.ExportBest(
                "val/y",
                "min",
                ema=True,
                export=lambda model, path: seen.append(float(model.w)) or path.write_text(""),
            ),
            witness := Witness(),
        ],
    )
    one.train(DATA, steps=2)  # w: 0.75, 0.5; averages 0.875, 0.6875
    assert seen == pytest.approx([0.875, 0.6875])
    assert [s["val/y"] for _, s, _ in witness.logs if "val/y" in s] == pytest.approx(
        [2.5 * 0.875, 2.5 * 0.6875]
    )
    assert one.model.w.numpy() == pytest.approx(0.5)


# Evaluation


def test_evaluate_and_validation_losses():
    one = trainer(rate=0.1)
    one.train(DATA, steps=1)
    data = tf.data.Dataset.from_tensor_slices({"x": np.arange(7.0, dtype=np.float32)}).batch(4)
    metrics = {"y": tfloss.metric(keras.metrics.Mean(), lambda b, p: p["y"])}
    found = one.evaluate(data, metrics, losses=True)
    assert found == pytest.approx(
        {"y": 0.75 * 3, "losses/mean": 0.75 * 3, "losses/total": 0.75 * 3}
    )
    assert one.train_step.counter.numpy() == 1


def test_evaluating_before_training_builds_the_model():
    data = tf.data.Dataset.from_tensor_slices({"x": np.arange(6.0, dtype=np.float32)}).batch(4)
    found = trainer(_Two).evaluate(data, losses=True)
    assert set(found) == {"losses/loss", "losses/total"}


def test_evaluating_weights_beside_a_checkpoint_that_was_not_restored(tmp_path):
    trainer(workdir=tmp_path, hooks=[hooks.SaveCheckpoint()]).train(DATA, steps=2)  # w = 0.5
    data = tf.data.Dataset.from_tensors({"x": tf.ones([2])})
    metrics = {"y": tfloss.metric(keras.metrics.Mean(), lambda b, p: p["y"])}
    one = trainer(workdir=tmp_path)
    with pytest.warns(
        UserWarning, match=r"neither trained.*step_00000002.*trainer.restore"
    ) as found:
        assert one.evaluate(data, metrics) == {"y": 1.0}
    assert found[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert one.evaluate(data, losses=True)["losses/mean"] == 1.0  # once is enough
        assert one.restore(data) == 2
        assert one.evaluate(data, metrics) == {"y": 0.5}
        other = trainer(workdir=tmp_path)
        other.model.built = True
        tfloss.load_weights(other.model, tmp_path)
        assert other.evaluate(data, metrics) == {"y": 0.5}
        other = trainer(workdir=tmp_path)
        other.restore(data)
        assert other.evaluate(data, metrics) == {"y": 0.5}


def test_periodic_evaluation_is_logged_beside_training(tmp_path):
    data = tf.data.Dataset.from_tensor_slices({"x": np.arange(4.0, dtype=np.float32)}).batch(4)
    metrics = {"y": tfloss.metric(keras.metrics.Mean(), lambda b, p: p["y"])}
    evaluate = hooks.Evaluate(data, metrics, every=Every(steps=2), losses=True)
    trainer(rate=0.0, workdir=tmp_path, hooks=[evaluate, hooks.MetricsFile()], log_every=3).train(
        DATA, steps=5
    )
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = [(line["step"], line.get("val/y"), line.get("losses/mean")) for line in lines]
    assert found == [(2, 1.5, None), (3, None, 2.5), (4, 1.5, None), (5, None, 2.5), (5, 1.5, None)]
    assert lines[0]["val/losses/mean"] == 1.5


# Files


@pytest.mark.promise(7)
@pytest.mark.parametrize("count", [1, 2])
def test_event_files_read_back(count, replicas, tmp_path):
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    def report(m, b, y):
        summary.scalar("mine", tf.reduce_mean(y))
        summary.histogram("h", y)
        summary.image("i", tf.reshape(b["x"], [-1, 1, 1, 1]) / 4.0, max_outputs=1)
        tf.summary.scalar("plain", tf.reduce_mean(y))
        return {"mean": tf.reduce_mean(y)}

    one = trainer(
        lambda: Line(report),
        rate=0.0,
        strategy=replicas(count),
        workdir=tmp_path,
        hooks=[hooks.TensorBoard()],
        log_every=10,
    )
    one.train(DATA, steps=25)
    events = EventAccumulator(str(tmp_path / "train"), size_guidance={"tensors": 0}).Reload()
    for tag, value in (("Losses/mean", 2.5), ("Metrics/mine", 2.5), ("line/plain", 2.5)):
        found = events.Tensors(tag)
        assert [e.step for e in found] == [10, 20, 25]  # once, not once a replica
        assert [float(tf.make_ndarray(e.tensor_proto)) for e in found] == [value] * 3
    counts = tf.make_ndarray(events.Tensors("h")[0].tensor_proto)[:, 2]
    assert counts.sum() == 4.0  # of all replicas
    width, height, png = tf.make_ndarray(events.Tensors("i")[0].tensor_proto)
    assert tf.io.decode_png(png).numpy().tolist() == [[[63]]]  # 1/4 of replica 0's first


def test_without_a_workdir_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer(default_hooks=True).train(DATA, steps=3)
    assert list(tmp_path.iterdir()) == []


def test_default_hooks_make_way_for_ones_own(tmp_path):
    mine = hooks.MetricsFile(tmp_path / "other.jsonl")
    one = trainer(workdir=tmp_path / "w", hooks=[mine], default_hooks=True)
    one.train(DATA, steps=2)
    assert (tmp_path / "other.jsonl").exists() and not (tmp_path / "w/metrics.jsonl").exists()
    assert [type(h).__name__ for h in one.hooks] == [
        "MetricsFile",
        "NaNGuard",
        "SaveCheckpoint",
        "TensorBoard",
        "Progress",
    ]


# What is refused, before the first step


def test_a_data_set_that_ends_says_how_many_batches_it_had(tmp_path):
    data = tf.data.Dataset.from_tensor_slices({"x": np.ones(10, np.float32)}).batch(2)
    one = trainer(rate=0.0, workdir=tmp_path, hooks=[hooks.SaveCheckpoint()])
    with pytest.raises(DataError, match="ended after 5 batches, at step 5 of 8.*repeat"):
        one.train(data, steps=8)
    assert one.step == 5 and one.checkpoints.latest().name == "step_00000005"


def test_a_finite_data_set_starts_again_in_the_next_call():
    data = tf.data.Dataset.from_tensor_slices({"x": np.ones(10, np.float32)}).batch(2)
    one = trainer(rate=0.0)
    one.train(data, steps=5)
    assert one.train(data, steps=10).step == 10


@pytest.mark.parametrize("known", [True, False])
def test_an_empty_data_set(known):
    data = tf.data.Dataset.from_tensor_slices({"x": np.ones(1, np.float32)}).batch(1)
    data = data.take(0) if known else data.filter(lambda batch: False)
    with pytest.raises(DataError, match="empty"):
        trainer().train(data, steps=1)


def test_data_that_is_not_a_data_set():
    with pytest.raises(DataError, match="tf.data.Dataset.*Source.*got list"):
        trainer().train([1, 2, 3], steps=1)


def test_batches_of_another_structure_are_refused():
    one = trainer(rate=0.0)
    one.train(DATA, steps=1)
    other = tf.data.Dataset.from_tensors({"x": tf.ones([1]), "z": tf.ones([1], tf.int32)}).repeat()
    with pytest.raises(DataError, match=r"batch\['z'\]: absent -> int32 of rank 1"):
        one.train(other, steps=2)


@pytest.mark.parametrize("name", ["steps", "log_every", "steps_per_call"])
@pytest.mark.parametrize("value", [0, -1, 2.5, True])
def test_numbers_that_make_no_sense(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1"):
        options = {} if name == "steps" else {name: value}
        trainer(**options).train(DATA, steps=value if name == "steps" else 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_workdir_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="can't be written to"):
        trainer(workdir=tmp_path / "w")


def test_a_workdir_that_is_a_file(tmp_path):
    (tmp_path / "w").write_text("")
    with pytest.raises(OSError, match=r"workdir '.*/w' can't be written to"):
        trainer(workdir=tmp_path / "w")


def test_a_model_that_is_no_keras_model():
    with pytest.raises(ValueError, match="keras.Model, got function"):
        tfloss.Trainer(lambda x: x, keras.optimizers.SGD())


@pytest.mark.promise(20)
def test_a_model_of_another_scope(replicas):
    one = tfloss.Trainer(Line(), keras.optimizers.SGD(), strategy=replicas(2), default_hooks=False)
    with pytest.raises(ModelError, match="model was created outside of the scope"):
        one.train(DATA, steps=1)


def test_bad_losses_leave_no_checkpoint(tmp_path):
    one = trainer(lambda: Line(lambda m, b, y: y), workdir=tmp_path, default_hooks=True)
    with pytest.raises(LossError, match="not a scalar"):
        one.train(DATA, steps=1)
    assert one.checkpoints.latest() is None


# NaN


def test_a_nan_stops_and_keeps_the_last_good_checkpoint_and_the_batch(tmp_path):
    def report(m, b, y):
        return {"root": tf.reduce_mean(tf.sqrt(y))}

    data = rows([4.0, 3.0, 2.0, 1.0, 5.0, 6.0, -1.0, 7.0], 2)
    witness = Witness()
    one = trainer(
        lambda: Line(report),
        rate=0.0,
        workdir=tmp_path,
        hooks=[witness, hooks.SaveCheckpoint(Every(steps=2)), hooks.NaNGuard()],
    )
    with pytest.raises(NonFiniteLossError, match="Loss 'root' is not finite at step 4") as e:
        one.train(data, steps=100)
    assert one.checkpoints.latest().name == "step_00000002"
    assert isinstance(witness.ended[0], NonFiniteLossError)
    assert "tfloss replay" in e.value.__notes__[0]
    kept = tmp_path / "nonfinite" / "step_00000004"
    batch = tf.data.Dataset.load(str(kept / "batch_0")).get_single_element()
    assert batch["x"].numpy().tolist() == [-1.0, 7.0]


def test_a_nan_without_a_workdir_says_what_it_takes_to_see_more():
    one = trainer(lambda: Line(lambda m, b, y: tf.reduce_mean(-y) ** 0.5), hooks=[hooks.NaNGuard()])
    with pytest.raises(NonFiniteLossError) as e:
        one.train(DATA, steps=3)
    assert "give the Trainer a workdir, which keeps the batch" in e.value.__notes__[0]


def test_no_warnings_in_an_ordinary_run(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer(workdir=tmp_path, default_hooks=True).train(DATA, steps=3)


# After an error, and beside another


def test_a_checkpoint_that_does_not_fit_is_refused_again(tmp_path):
    trainer(workdir=tmp_path, hooks=[hooks.SaveCheckpoint()]).train(DATA, steps=2)
    other = trainer(_Two, workdir=tmp_path, hooks=[hooks.SaveCheckpoint()])
    for _ in range(2):
        with pytest.raises(CheckpointError, match="doesn't match"):
            other.train(DATA, steps=4)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step_00000002"]


def test_restore_restores_every_time(tmp_path):
    one = trainer(workdir=tmp_path, hooks=[hooks.SaveCheckpoint()])
    one.train(DATA, steps=1)
    one.model.w.assign(99.0)
    assert one.restore(DATA) == 1
    assert one.model.w.numpy() == pytest.approx(0.75)


def test_validation_losses_follow_frozen_layers_and_weights():
    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="model")
            self.norm = keras.layers.BatchNormalization(scale=False, center=False, name="norm")
            self.w = self.add_weight(name="w", shape=(), initializer="ones")

        def call(self, batch, training=False):
            x = self.norm(batch["x"][:, None], training=training)
            return {"square": tf.reduce_mean((self.w * x) ** 2)} if training else x

    one, data = trainer(Model), rows([0.0, 10.0], 2).take(1)
    before = one.evaluate(data, losses=True)["losses/square"]
    one.model.norm.trainable = False  # then it uses its moving statistics
    after = one.evaluate(data, losses=True)["losses/square"]
    assert before == pytest.approx(1.0, abs=1e-2) and after == pytest.approx(50.0, rel=1e-2)


def test_evaluating_with_ever_new_metrics_keeps_few(monkeypatch):
    one = trainer()
    for _ in range(9):
        one.evaluate(DATA.take(1), {"y": tfloss.metric(keras.metrics.Mean(), lambda b, p: p["y"])})
    assert len(one._evaluators) == 8


def test_a_head_made_by_evaluating_does_not_disturb_training():
    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="model")
            self.body, self.head = keras.layers.Dense(1), keras.layers.Dense(2)

        def call(self, batch, training=False):
            h = self.body(batch["x"][:, None])
            return tf.reduce_mean(h**2) if training else self.head(h)

    one = trainer(Model, rate=0.001)
    one.train(DATA, steps=2)
    one.evaluate(DATA.take(1), {"m": tfloss.metric(keras.metrics.Mean(), lambda b, p: p)})
    with pytest.warns(UserWarning, match="No loss reaches.*head|No loss reaches.*dense_1"):
        assert one.train(DATA, steps=4).step == 4


class _Penalised(tfloss.TrainStep):
    def step(self, batch):
        def half(name):
            layer = getattr(self.model, name)
            return lambda b: {name: tf.reduce_mean(layer(b["x"][:, None]) ** 2)}

        a = self.minimize(half("a"), batch, group="a")
        return {**a, **self.minimize(half("b"), batch, group="b")}


def test_two_updates_with_regularizers_and_added_losses():
    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="model")
            options = {"kernel_regularizer": "l2", "activity_regularizer": "l2"}
            self.a = keras.layers.Dense(1, name="a", **options)
            self.b = keras.layers.Dense(1, name="b", **options)

        def call(self, batch, training=False):
            return self.b(self.a(batch["x"][:, None]))

    model = Model()
    groups = {k: (keras.optimizers.SGD(0.001), getattr(model, k)) for k in "ab"}
    one = tfloss.Trainer(model, groups, train_step=_Penalised, default_hooks=False)
    result = one.train(DATA, steps=2)
    assert {"a", "b", "model/a", "model/b", "regularization", "regularization_1"} < set(
        result.losses
    )


TWICE = """
import os, signal, time
import keras
import tfloss
from tests.toys import Line, rows
from tfloss.hooks import Every, Hook

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it

class Press(Hook):
    every = Every(steps=3)

    def after_step(self, step):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
        time.sleep(60)

trainer = tfloss.Trainer(Line(), keras.optimizers.SGD(0.1), hooks=[Press()])
trainer.train(rows([1.0], 1), 10)
"""


def test_a_second_control_c_ends_a_plain_script_as_python_ends_one():
    code = [sys.executable, "-c", TWICE]
    done = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert done.returncode == -signal.SIGINT
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.parametrize("jit", [False, True, "loop"])
def test_every_summary_is_written_if_every_step_is_logged(tmp_path, jit):
    """Scalars at each step; histograms, images and plain tf.summary ones at each log."""

    def report(model, batch, y):
        tfloss.summary.scalar("twice", 2.0 * y[0])
        tfloss.summary.histogram("y", y)
        tfloss.summary.image("picture", tf.zeros([1, 2, 2, 3]))
        tf.summary.histogram("plain", y)
        return {"mean": tf.reduce_mean(y)}

    found = []

    class Saw(tfloss.Hook):
        def on_log(self, step, scalars, summaries):
            found.append((step, "twice" in scalars, sorted(one.name for one in summaries)))

    one = tfloss.Trainer(
        Line(report),
        keras.optimizers.SGD(0.0),
        hooks=[Saw()],
        jit=jit,
        log_every=3,
        log_every_step=True,
    )
    one.train(rows(np.ones(8), 2), 7)
    names = ["line/plain", "picture", "y"]
    expected = {3: names, 6: names, 7: names}
    assert found == [(step, True, expected.get(step, [])) for step in range(1, 8)]


def test_logs_of_every_step_stand_once_after_a_kill(tmp_path):
    """The checkpoint of step 5 holds two steps that are not logged yet: 4 and 5."""

    class Kill(tfloss.Hook):
        every = tfloss.Every(steps=1)
        time_bucket = "checkpoint"

        def after_step(self, step):
            if step == self.at:
                raise RuntimeError("killed")

    for at in (7, None):
        kill = Kill()
        kill.at = at
        evaluation = hooks.Evaluate(DATA.take(1), {}, losses=True, every=hooks.OnSteps(5, 6))
        one = trainer(
            workdir=tmp_path,
            default_hooks=True,
            hooks=[evaluation, hooks.SaveCheckpoint(hooks.OnSteps(5)), kill],
            log_every=3,
            log_every_step=True,
        )
        with contextlib.suppress(RuntimeError):
            one.train(DATA, 9)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "losses/total" in line]
    assert steps == list(range(1, 10))
    assert [line["step"] for line in lines if "val/losses/total" in line] == [5, 6, 9]
    events = [
        (event.step, f"{path.parent.name}/{value.tag}")
        for path in sorted(tmp_path.glob("*/*tfevents*"))
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
    ]
    assert sorted(step for step, tag in events if tag == "train/Losses/total") == list(range(1, 10))
    assert sorted(step for step, tag in events if tag == "val/Losses/total") == [5, 6, 9]


# Python values that traced code reads


class _Scaled(Line):
    """The loss is beta times the mean; beta is a Python attribute."""

    def __init__(self):
        super().__init__()
        self.beta = 1.0

    def call(self, batch, training=False):
        return self.beta * tf.reduce_mean(self.w * batch["x"])


class _SetsBeta(tfloss.Hook):
    def __init__(self):
        super().__init__()
        self.every = tfloss.Every(steps=1)

    def after_step(self, step):
        self.trainer.model.beta = 1.0 + step


@pytest.mark.promise(52)
@pytest.mark.parametrize("jit", [False, True, "loop"])
def test_a_python_value_that_changes_during_a_call_is_said_and_counts_in_the_next(jit):
    data = rows([1.0], 1)
    trainer = tfloss.Trainer(_Scaled(), keras.optimizers.SGD(0.0), jit=jit, default_hooks=False)
    with pytest.warns(UserWarning, match="'beta' of layer 'line' was 1.0, and is") as found:
        result = trainer.train(data, 3, hooks=[_SetsBeta()])
    assert result.losses["loss"] == 1.0
    assert len([one for one in found if "beta" in str(one.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert trainer.train(data, 5).losses["loss"] == 4.0  # traced again


def test_a_learning_rate_of_a_function_that_changes_during_a_call_is_said():
    rate = {"value": 0.5}

    class SetsRate(tfloss.Hook):
        def __init__(self):
            super().__init__()
            self.every = tfloss.Every(steps=1)

        def after_step(self, step):
            rate["value"] = 0.25

    optimizer = keras.optimizers.SGD(lambda: rate["value"])
    trainer = tfloss.Trainer(Line(), optimizer, jit=False, default_hooks=False)
    with pytest.warns(UserWarning, match="'rate' was {'value': 0.5}, and is {'value': 0.25}"):
        trainer.train(rows([1.0], 1), 2, hooks=[SetsRate()])
    assert trainer.model.w.numpy() == 0.0  # 1 - 2 * 0.5
    trainer.train(rows([1.0], 1), 3)
    assert trainer.model.w.numpy() == -0.25


@pytest.mark.promise(52)
@pytest.mark.upstream
def test_upstream_freezes_python_attributes():
    model = _Scaled()
    step = tf.function(lambda x: model({"x": x}, training=True))
    assert float(step(tf.ones([1]))) == 1.0
    model.beta = 4.0
    assert float(step(tf.ones([1]))) == 1.0


def test_an_option_that_a_hook_changes_during_a_call_is_said():
    class Freezes(tfloss.Hook):
        def __init__(self):
            super().__init__()
            self.every = tfloss.Every(steps=2)

        def after_step(self, step):
            self.trainer.train_step.clip_norm = 1.0

    trainer = tfloss.Trainer(Line(), keras.optimizers.SGD(0.0), jit=False, default_hooks=False)
    with pytest.warns(UserWarning, match="`clip_norm`.* have changed"):
        trainer.train(rows([1.0], 1), 3, hooks=[Freezes()])
