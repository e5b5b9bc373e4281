"""An update that is not finite is skipped: nothing changes but the counts of skipped updates."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.step.masked_net import data
from tests.toys import Line, make_step
from tfloss.data.stacked_batches import BatchStacker
from tfloss.engine.engine import Engine
from tfloss.errors import NonFiniteLossError
from tfloss.optimizers.mixed_precision import LossScale
from tfloss.step.skipping import MOST_SKIPPED, Skipping, counter


@pytest.mark.parametrize(
    ("skip_nonfinite", "scaled", "active", "tolerated"),
    [
        (False, False, False, 0),
        (False, True, True, 0),
        (True, False, True, MOST_SKIPPED),
        (True, True, True, MOST_SKIPPED),
    ],
)
def test_what_is_skipped_and_tolerated(skip_nonfinite, scaled, active, tolerated):
    skipping = Skipping(skip_nonfinite, LossScale() if scaled else None)

    assert (skipping.active, skipping.tolerated) == (active, tolerated)
    names = (["skipped"] if active else []) + (
        ["loss_scale/value", "loss_scale/good_updates"] if scaled else []
    )
    assert list(skipping.variables()) == names


def test_twenty_updates_in_a_row_may_be_skipped():
    skipping = Skipping(True, None)

    for count, tolerates in ((0, True), (19, True), (20, False), (21, False)):
        skipping.in_a_row.assign(count)
        assert bool(skipping.tolerates()) == tolerates
        assert bool(skipping.tolerates_gradients()) == tolerates
    assert Skipping(False, LossScale()).tolerates() is None
    assert Skipping(False, None).tolerates_gradients() is None


@pytest.mark.parametrize("skip_nonfinite", [False, True])
def test_a_loss_scale_tolerates_bad_gradients_until_it_can_not_fall(skip_nonfinite):
    skipping = Skipping(skip_nonfinite, LossScale(initial=2.0))

    for count, scale, tolerates in ((30, 2.0, True), (30, 1.0, False), (3, 1.0, skip_nonfinite)):
        skipping.in_a_row.assign(count)
        skipping.loss_scale.value.assign(scale)
        assert bool(skipping.tolerates_gradients()) == tolerates


def test_an_update_is_either_applied_or_the_state_restored():
    skipping, state = Skipping(True, None), tf.Variable(5.0)

    @tf.function(autograph=False)
    def update(finite):
        state.assign_add(1.0)  # the forward pass
        return skipping.decide(finite, lambda: state.assign_add(10.0), lambda: state.assign(5.0))

    assert not update(tf.constant(False)) and state.numpy() == 5.0
    assert update(tf.constant(True)) and state.numpy() == 16.0


def test_skipped_updates_are_counted_until_one_is_applied_and_the_scale_follows():
    skipping = Skipping(True, LossScale(initial=8.0, interval=2))

    @tf.function(autograph=False)
    def record(applied):
        return skipping.record(applied)

    found = []
    for applied in (False, False, True, False, True, True, True):
        assert len(record(tf.constant(applied))) == 3  # the count, the scale, its good updates
        found.append((int(skipping.in_a_row), float(skipping.loss_scale.value)))
    # Each skipped update halves the scale; two applied ones in a row double it.
    assert found == [(1, 4), (2, 2), (0, 2), (1, 1), (0, 1), (0, 2), (0, 2)]


def test_a_counter_starts_at_zero_and_is_the_same_on_all_replicas(replicas):
    with replicas(2).scope():
        found = counter("steps")

    assert (found.dtype, found.numpy(), found.trainable) == (tf.int64, 0, False)
    assert found.aggregation == tf.VariableAggregation.ONLY_FIRST_REPLICA


def _poisoned(bad_rows, kind):
    bad = np.zeros(32, np.float32)
    bad[bad_rows] = 1.0

    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="model")
            self.w = self.add_weight(name="w", shape=(), initializer="ones")
            self.norm = keras.layers.BatchNormalization(name="norm")
            counter = {"shape": (), "dtype": "int32", "initializer": "zeros", "trainable": False}
            self.count = self.add_weight(name="count", **counter)
            self.first = self.add_weight(name="1", aggregation="only_first_replica", **counter)
            self.mean = keras.metrics.Mean(name="mean")

        def call(self, batch, training=False):
            self.count.assign_add(1)
            self.first.assign_add(1)
            self.mean.update_state(tf.where(batch["bad"] > 0, np.nan, batch["x"]))
            x = batch["x"] / 32.0
            if kind == "loss":
                x = tf.where(batch["bad"] > 0, np.nan, x)
            x = self.norm(x[:, None], training=training)[:, 0]
            y = self.w * (x + 1.0)
            if kind == "gradient":  # a finite loss, but the slope of a root is infinite at 0
                y += tf.sqrt(tf.where(batch["bad"] > 0, 0.0 * self.w, 1.0))
            return {"mean": tf.reduce_mean(y)}

    return Model, data(8, bad=bad)


@pytest.mark.promise(3, 15)
@pytest.mark.parametrize("count", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_bad_update_on_one_replica_changes_nothing_anywhere(count, kind, replicas):
    model, dataset = _poisoned([15], kind)  # the last replica's, in the second step
    train_step, iterator = make_step(
        model,
        dataset,
        strategy=replicas(count),
        optimizer=lambda: keras.optimizers.Adam(0.1),
        skip_nonfinite=True,
        ema=0.5,
    )
    engine = Engine(train_step)
    engine.run(iterator, 1)

    def state():
        everything = [*train_step.model.variables, *train_step.model.metrics_variables]
        everything += train_step.optimizers["optimizer"].variables
        values = [v.value for v in everything] + list(train_step.extra_variables().values())[1:]
        local = train_step.strategy.experimental_local_results
        return [np.asarray(one) for value in values for one in local(value)]

    before = state()
    done = int(train_step.optimizers["optimizer"].iterations.numpy())
    block = engine.run(iterator, 1)
    for old, new in zip(before, state(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert dict(zip(block.names, block.rows()[0], strict=True))["skipped"] == 1.0
    block = engine.run(iterator, 1)
    assert dict(zip(block.names, block.rows()[0], strict=True))["skipped"] == 0.0
    assert int(train_step.optimizers["optimizer"].iterations.numpy()) == done + 1
    assert np.isfinite(np.concatenate([v.ravel() for v in state()])).all()


def _with_raw_state(bad_rows):
    bad = np.zeros(32, np.float32)
    bad[bad_rows] = 1.0

    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="model")
            self.w = self.add_weight(name="w", shape=(), initializer="ones")
            mean, first = tf.VariableAggregation.MEAN, tf.VariableAggregation.ONLY_FIRST_REPLICA
            local = {"synchronization": tf.VariableSynchronization.ON_READ, "aggregation": mean}
            self.center = tf.Variable(0.0, trainable=False, aggregation=mean)
            self.nested = {"counts": [tf.Variable(0, trainable=False, aggregation=first)]}
            self.module = tf.Module()
            self.module.each = tf.Variable(0.0, trainable=False, **local)
            self.generator = tf.random.Generator.from_seed(1)

        def call(self, batch, training=False):
            x = tf.where(batch["bad"] > 0, np.nan, batch["x"])
            self.center.assign(tf.reduce_mean(x))
            self.nested["counts"][0].assign_add(1)
            self.module.each.assign(tf.reduce_sum(x))
            return {"mean": self.w * tf.reduce_mean(x) + 0.0 * self.generator.uniform([])}

    return Model, data(8, bad=bad)


@pytest.mark.promise(3)
@pytest.mark.parametrize(("mode", "count"), [("graph", 1), ("graph", 2), ("step", 1), ("loop", 1)])
def test_raw_variables_are_restored_too(mode, count, replicas):
    # Compiled on several replicas, a step that assigns raw variables is refused.
    model, dataset = _with_raw_state([15])  # the last replica's, in the second step
    train_step, iterator = make_step(model, dataset, strategy=replicas(count), skip_nonfinite=True)
    if mode == "loop":
        iterator = BatchStacker(iterator)
    engine = Engine(train_step, mode=mode)
    engine.run(iterator, 1)
    net, local = train_step.model, train_step.strategy.experimental_local_results

    def raw():
        variables = net.center, net.nested["counts"][0], net.module.each
        return [[one.numpy() for one in local(variable)] for variable in variables]

    before, drawn = raw(), net.generator.state.numpy().tolist()
    each = [36.0] if count == 1 else [10.0, 26.0]
    assert before == [[4.5] * count, [1] * count, each]
    logs = engine.run(iterator, 1)
    assert dict(zip(logs.names, logs.rows()[-1], strict=True))["skipped"] == 1.0
    assert raw() == before
    assert net.generator.state.numpy().tolist() != drawn  # the next step draws other numbers
    engine.run(iterator, 1)
    assert raw()[:2] == [[20.5] * count, [2] * count]


def test_too_many_in_a_row_are_a_failure_that_names_the_loss():
    def report(m, b, y):
        return {"good": tf.reduce_mean(y), "bad": tf.reduce_mean(y) * np.nan}

    train_step, iterator = make_step(lambda: Line(report), data(8), skip_nonfinite=True)
    with pytest.raises(NonFiniteLossError, match="'bad'.* is not finite") as error:
        Engine(train_step).run(iterator, 100)
    assert error.value.step == MOST_SKIPPED + 1
    assert train_step.model.w.numpy() == 1.0


@pytest.mark.parametrize("mode", ["graph", "step", "loop"])
def test_many_bad_gradients_of_good_losses_are_a_failure_too(mode):
    """At 0 the root is 0, and its gradient infinite times 0."""

    def report(model, batch, y):
        return {"root": tf.sqrt((model.w - 1.0) ** 2) + 0.0 * tf.reduce_mean(y)}

    train_step, iterator = make_step(lambda: Line(report), data(8), skip_nonfinite=True)
    if mode == "loop":
        iterator = BatchStacker(iterator)
        iterator.reads_ahead = True
    with pytest.raises(NonFiniteLossError, match="The gradient is not finite.*'root'") as error:
        engine, done = Engine(train_step, mode=mode), 0
        while done < 100:
            done += engine.run(iterator, 100 - done).steps
    assert error.value.step == MOST_SKIPPED + 1
    assert train_step.model.w.numpy() == 1.0
