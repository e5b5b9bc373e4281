"""A loss or gradient that is not finite stops training in every mode, and nothing else does."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.toys import Line, make_step, rows
from tfloss import summary
from tfloss.data.stacked_batches import BatchStacker
from tfloss.engine.engine import Engine
from tfloss.errors import NonFiniteLossError
from tfloss.step.train_step import TrainStep

MODES = ["graph", "step", "loop"]
DATA = rows([4.0, 3.0, 2.0, 1.0, 0.0, -1.0, 5.0, 5.0], 2)  # batch 3 has a negative number


def _run(model, mode, steps=8, step=TrainStep, log_every_step=True, **options):
    """Runs all steps. Returns the step, and the values of each in a column by name."""
    train_step, source = make_step(
        model, DATA, step=step, optimizer=lambda: keras.optimizers.SGD(1e-3), **options
    )
    if mode == "loop":
        source = BatchStacker(source)
        source.ahead = True
    engine, found = Engine(train_step, mode=mode, log_every_step=log_every_step), []
    while sum(map(len, found)) < steps:
        logs = engine.run(source, steps - sum(map(len, found)))
        found.append(logs.rows())
    return train_step, dict(zip(logs.names, np.concatenate(found).T, strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_a_summary_that_is_not_finite_never_stops_training_whatever_its_name(mode):
    names = ["losses/raw", "losses/total_raw", "gradient_norm/raw", "gradient_norms"]

    def report(model, batch, y):
        for name in names:
            summary.scalar(name, np.nan * tf.reduce_mean(y), every_step=True)
        return {"mean": tf.reduce_mean(y)}

    _, found = _run(lambda: Line(report), mode, clip_norm=100.0)
    for name in names:
        assert np.isnan(found[name]).all()
    assert np.isfinite(found["losses/mean"]).all() and np.isfinite(found["gradient_norm"]).all()


@pytest.mark.parametrize("mode", MODES)
def test_a_number_that_the_step_shows_beside_its_losses_does_not_stop_it(mode):
    class Shows(TrainStep):
        def step(self, batch):
            losses = self.minimize(self.forward, batch)
            return {**losses, "ratio": losses["mean"] * np.nan}

    _, found = _run(Line, mode, step=Shows)
    assert np.isnan(found["losses/ratio"]).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shown", [True, False])
def test_a_loss_that_is_not_finite_stops_training_shown_or_not(mode, shown):
    class Shows(TrainStep):
        def step(self, batch):
            losses = self.minimize(self.forward, batch)
            return losses if shown else {}

    def report(model, batch, y):
        return {"a/root": tf.reduce_mean(tf.sqrt(y)), "losses/mean": tf.reduce_mean(y)}

    with pytest.raises(NonFiniteLossError, match="is not finite at step 3") as error:
        _run(lambda: Line(report), mode, step=Shows)
    bad = {name for name, value in error.value.losses.items() if not np.isfinite(value)}
    # A compiled loop watches losses that the step doesn't show by their total.
    assert {"total"} <= bad <= {"a/root", "total"}
    assert bad == {"a/root", "total"} or not shown


@pytest.mark.parametrize("mode", MODES)
def test_a_step_that_goes_wrong_leaves_everything_as_it_was(mode):
    class Model(Line):
        def __init__(self):
            super().__init__(lambda m, b, y: {"root": tf.reduce_mean(tf.sqrt(y))})
            self.seen = self.add_weight(name="seen", shape=(), initializer="zeros", trainable=False)
            self.mean = keras.metrics.Mean(name="metric")

        def call(self, batch, training=False):
            if training:
                self.seen.assign_add(1.0)
                self.mean.update_state(batch["x"])
            return super().call(batch, training)

    made = []

    def model():
        made.append(Model())
        return made[0]

    with pytest.raises(NonFiniteLossError):
        _run(model, mode)
    assert made[0].seen.numpy() == 2.0
    assert made[0].mean.count.numpy() == 4.0
    assert np.isfinite(made[0].w.numpy())


# Gradients


def _log(model, batch, y):
    """Finite at y = 0, but its gradient is 0 * (1 / 0)."""
    return {"entropy": tf.reduce_mean(tf.where(y > 0.0, tf.math.log(y), 0.0))}


def _root(model, batch, y):
    """0 at y = 0, where its slope is infinite."""
    return {"root": tf.reduce_mean(tf.sqrt(y))}


class _Everything(keras.Model):
    """Everything that a step changes: weights, slots, statistics, counters, metrics, averages."""

    def __init__(self, report):
        super().__init__(name="model")
        self.w = self.add_weight(name="w", shape=(), initializer="ones")
        self.v = self.add_weight(name="v", shape=(), initializer="ones")
        self.norm = keras.layers.BatchNormalization(name="norm")
        self.drop = keras.layers.Dropout(0.5, seed=1)
        self.seen = self.add_weight(name="seen", shape=(), initializer="zeros", trainable=False)
        self.mean = keras.metrics.Mean(name="metric")
        self.report = report

    def call(self, batch, training=False):
        y = self.w * batch["x"]
        if training:
            self.seen.assign_add(1.0)
            self.mean.update_state(batch["x"])
            noise = self.drop(self.norm(batch["x"][:, None], training=True), training=True)
            other = {"other": self.v * tf.reduce_mean(noise) + self.v**2}
            return {**self.report(self, batch, y), **other}
        return {"y": y}


def _state(train_step):
    """The values of all variables, on all replicas."""
    local = train_step.strategy.experimental_local_results
    everything = [*train_step.state(), *(m.value for m in train_step.model.metrics_variables)]
    return [np.asarray(one) for value in everything for one in local(value)]


def _stopped(model, values, mode="graph", batch=2, optimizer=None, step=TrainStep, **options):
    """Trains until the guard stops it. Returns step, error, and the state before the bad step."""

    def make(optimizer=optimizer or (lambda: keras.optimizers.Adam(0.01))):
        return make_step(model, rows(values, batch), step=step, optimizer=optimizer, **options)

    def engine_of(train_step, source):
        if mode == "loop":
            source = BatchStacker(source, options.get("accumulate", 1))
            source.reads_ahead = True
        return Engine(train_step, mode=mode), source

    train_step, source = make()
    engine, source = engine_of(train_step, source)
    with pytest.raises(NonFiniteLossError) as caught:
        for _ in range(20):
            engine.run(source, 20)
    done = caught.value.step - 1
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    other, source = make()
    engine, source = engine_of(other, source)
    while done > 0:
        done -= engine.run(source, done).steps
    return train_step, caught.value, _state(other)


@pytest.mark.promise(32)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("report", "name"), [pytest.param(_log, "entropy", marks=pytest.mark.slow), (_root, "root")]
)
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_named(mode, report, name):
    train_step, error, before = _stopped(
        lambda: _Everything(report), [4.0, 3.0, 2.0, 1.0, 0.0, 1.0, 5.0, 5.0], mode, ema=0.5
    )
    for ours, theirs in zip(_state(train_step), before, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert error.step == 3 and train_step.counter.numpy() == 2
    assert np.isfinite(list(error.losses.values())).all()
    (found,) = error.gradients
    assert (found.group, found.losses, found.variables) == ("optimizer", (name,), ("model/w",))
    assert np.concatenate([one["x"] for one in error.batch]).tolist() == [0.0, 1.0]
    assert str(error).startswith("The gradient is not finite at step 3, but the losses are (")
    assert f"of loss '{name}' for 'model/w' (optimizer group 'optimizer')" in str(error)
    assert str(error).endswith("so the weights are those of step 2.")


@pytest.mark.promise(32)
@pytest.mark.parametrize("mode", ["graph", pytest.param("step", marks=pytest.mark.slow)])
@pytest.mark.parametrize("options", [{}, {"accumulate": 2}])
def test_one_replica_or_micro_batch_with_a_bad_gradient_stops_all(mode, options, replicas):
    values = [4.0, 3.0, 2.0, 1.0, 2.0, 2.0, 3.0, 0.0]  # the last replica's, of the second step
    many = options.get("accumulate", 1)
    train_step, error, before = _stopped(
        lambda: _Everything(_root), values, mode, 4 // many, strategy=replicas(2), **options
    )
    for ours, theirs in zip(_state(train_step), before, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert error.step == 2 and len(error.batch) == 2 * many
    (found,) = error.gradients
    assert (found.losses, found.variables) == (("root",), ("model/w",))
    seen = np.concatenate([one["x"] for one in error.batch])
    assert sorted(seen.tolist()) == [0.0, 2.0, 2.0, 3.0]


def _two_groups(model, batch, y):
    return {"a": {"root": tf.reduce_mean(tf.sqrt(y))}, "b": {"square": model.v**2}}


@pytest.mark.parametrize("mode", MODES)
def test_a_good_group_is_not_updated_beside_a_bad_one(mode):
    class Model(_Everything):
        def call(self, batch, training=False):
            return _two_groups(self, batch, self.w * batch["x"])

    def optimizer():
        return {
            "b": (keras.optimizers.SGD(0.1), lambda model: [model.v]),
            "a": (keras.optimizers.SGD(0.01), lambda model: [model.w]),
        }

    train_step, error, before = _stopped(
        lambda: Model(None), [4.0, 1.0, 0.0, 1.0], mode, optimizer=optimizer
    )
    for ours, theirs in zip(_state(train_step), before, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert train_step.model.v.numpy() == pytest.approx(0.8)  # one update: 1 - 0.1 * 2
    (found,) = error.gradients
    assert (found.group, found.losses, found.variables) == ("a", ("a/root",), ("model/w",))


class _TwoUpdates(TrainStep):
    """Updates v, counts that in `seen`, and then updates w at the new v."""

    def step(self, batch):
        model = self.model
        first = self.minimize(lambda b: {"square": model.v**2}, batch, group="b")
        model.seen.assign_add(10.0)
        second = self.minimize(
            lambda b: {"root": tf.reduce_mean(tf.sqrt(model.w * b["x"])) * model.v},
            batch,
            group="a",
        )
        return {**first, **second}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", [1, 2])
def test_a_bad_second_update_of_a_step_undoes_the_first(mode, count, replicas):
    if mode == "loop" and count > 1:
        pytest.skip("a loop is for one replica")

    def optimizer():
        return {
            "b": (keras.optimizers.Adam(0.1), lambda model: [model.v]),
            "a": (keras.optimizers.SGD(0.01), lambda model: [model.w]),
        }

    train_step, error, before = _stopped(
        lambda: _Everything(_root), [4.0, 1.0, 0.0, 1.0], mode, optimizer=optimizer,
        step=_TwoUpdates, strategy=replicas(count), ema=0.5,
    )  # fmt: skip
    for ours, theirs in zip(_state(train_step), before, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert error.step == 2 and train_step.model.seen.numpy() == 10.0
    (found,) = error.gradients
    assert (found.group, found.losses, found.variables) == ("a", ("root",), ("model/w",))


class _Rows(keras.Model):
    """An embedding whose bad row is that of number 2."""

    def __init__(self):
        super().__init__(name="model")
        self.table = keras.layers.Embedding(4, 2, embeddings_initializer="ones", name="table")

    def call(self, batch, training=False):
        number = tf.cast(batch["x"], tf.int32)
        one = tf.where(number == 2, 1.0, 0.0)[:, None]
        return {"root": tf.reduce_sum(tf.sqrt(self.table(number) - one))}


@pytest.mark.parametrize("mode", MODES)
def test_a_bad_row_of_a_sparse_gradient_is_found(mode):
    train_step, error, _ = _stopped(
        _Rows, [0.0, 1.0, 3.0, 2.0], mode, optimizer=lambda: keras.optimizers.SGD(0.0)
    )
    assert error.step == 2
    assert error.gradients[0].variables == ("model/table/embeddings",)
    np.testing.assert_array_equal(train_step.model.table.embeddings.numpy(), 1.0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [1e20, 3e38])
def test_a_large_finite_gradient_is_no_failure(mode, value):
    def report(model, batch, y):
        return {"steep": (model.w - 1.0) * value + 0.0 * tf.reduce_mean(y)}

    train_step, _ = _run(lambda: Line(report), mode, steps=1)
    assert train_step.model.w.numpy() == pytest.approx(1.0 - 1e-3 * value)


def test_a_finite_gradient_whose_norm_overflows_is_described_as_that():
    def report(model, batch, y):
        return {"steep": (model.w - 1.0) * 1e25 + 0.0 * tf.reduce_mean(y)}

    _, error, _ = _stopped(lambda: Line(report), [1.0, 2.0], clip_norm=1.0)
    assert "each loss has a finite gradient, up to 1e+25, but their sum or norm" in str(error)
    assert error.gradients[0].variables == ()


def test_a_bad_regularizer_is_named():
    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="model")
            self.dense = keras.layers.Dense(
                1, kernel_initializer="zeros", kernel_regularizer=lambda w: tf.norm(w), name="d"
            )

        def call(self, batch, training=False):
            return {"mean": tf.reduce_mean(self.dense(batch["x"][:, None]))}

    _, error, _ = _stopped(Model, [1.0, 2.0])
    assert error.gradients[0].losses == ("regularization",)
    assert error.gradients[0].variables == ("model/d/kernel",)


@pytest.mark.parametrize("mode", MODES)
def test_a_loss_scale_at_its_minimum_does_not_skip_for_ever(mode):
    def report(model, batch, y):
        return {
            "root": tf.sqrt((tf.cast(model.w, tf.float32) - 1.0) ** 2) + tf.reduce_mean(batch["x"])
        }

    train_step, error, _ = _stopped(
        lambda: Line(report), [1.0, 2.0], mode, precision="mixed_float16"
    )
    assert error.step == 16  # 2**15 is halved 15 times
    assert train_step.model.w.numpy() == 1.0
    assert error.gradients[0].losses == ("root",)


@pytest.mark.parametrize("mode", MODES)
def test_without_the_check_of_gradients_the_next_bad_loss_tells_that_the_weights_are_bad(mode):
    train_step, source = make_step(
        lambda: Line(_root), rows([4.0, 1.0, 0.0, 1.0, 2.0, 2.0], 2),
        optimizer=lambda: keras.optimizers.SGD(0.01),
    )  # fmt: skip
    if mode == "loop":
        source = BatchStacker(source)
        source.reads_ahead = True
    engine = Engine(train_step, mode=mode, check_gradients=False)
    with pytest.raises(NonFiniteLossError, match="Loss 'root' is not finite at step 3") as caught:
        for _ in range(3):
            engine.run(source, 3)
    assert caught.value.weights == ("line/w",)
    assert "those of step 2. Some of them are not finite: 'line/w'" in str(caught.value)
