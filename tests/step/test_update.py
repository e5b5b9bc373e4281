"""Accumulated, clipped, scaled, skipped: every rule alone and all together."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.toys import Line, make_step, run
from tfloss import summary
from tfloss.data.stacked_batches import BatchStacker
from tfloss.engine.engine import Engine
from tfloss.errors import DataError, LossError, NonFiniteLossError
from tfloss.forward.context import current_step
from tfloss.forward.global_batch import global_mean
from tfloss.step.skipping import MOST_SKIPPED
from tfloss.step.train_step import TrainStep

X = np.arange(1.0, 33.0, dtype=np.float32)
VALID = (np.arange(32) % 5 == 0).astype(np.float32)


def data(batch, **more):
    columns = {"x": X, "valid": VALID, **more}
    return tf.data.Dataset.from_tensor_slices(columns).batch(batch, drop_remainder=True).repeat()


class Net(keras.Model):
    def __init__(self):
        super().__init__(name="net")
        self.first = keras.layers.Dense(6, activation="tanh", name="first")
        self.drop = keras.layers.Dropout(0.0)
        self.last = keras.layers.Dense(2, name="last", kernel_regularizer="l2")

    def call(self, batch, training=False):
        z = self.last(self.drop(self.first(batch["x"][:, None] / 16.0), training=training))
        each = tf.reduce_mean((tf.cast(z, tf.float32) - 1.0) ** 2, -1)
        return {"mean": tf.reduce_mean(each), "masked": global_mean(each, batch["valid"])}


def trained(batch, strategy=None, steps=20, mode="graph", **options):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    train_step, iterator = make_step(Net, data(batch), strategy=strategy, **options)
    block = Engine(train_step, mode=mode).run(iterator, steps)
    state = {v.path: v.numpy() for v in train_step.model.weights}
    state |= {name: v.numpy() for name, v in train_step.extra_variables().items()}
    return state, dict(zip(block.names, block.rows().T, strict=True)), train_step


def assert_same(one, other, rtol=1e-6):
    for name, value in one[0].items():
        np.testing.assert_allclose(other[0][name], value, rtol, atol=rtol, err_msg=name)
    for name, column in one[1].items():
        np.testing.assert_allclose(other[1][name], column, 1e-5, atol=1e-6, err_msg=name)


def test_gradients_of_several_dtypes_are_clipped_together():
    class Mixed(keras.Model):
        def __init__(self):
            super().__init__(name="mixed")
            self.w = self.add_weight(shape=[], dtype="float64", initializer="zeros", name="w")
            self.v = self.add_weight(shape=[], initializer="zeros", name="v")

        def call(self, batch, training=False):
            return {"loss": 3.0 * tf.cast(self.w, tf.float32) + 4.0 * self.v}

    batches = tf.data.Dataset.from_tensors({"x": tf.ones([2])}).repeat()
    for options in ({"clip_norm": 1.0}, {"clip_norm": 1.0, "skip_nonfinite": True}):
        train_step, iterator = make_step(
            Mixed, batches, optimizer=lambda: keras.optimizers.SGD(1.0), **options
        )
        Engine(train_step).run(iterator, 1)
        model = train_step.model
        np.testing.assert_allclose([model.w.numpy(), model.v.numpy()], [-0.6, -0.8], rtol=1e-6)


# Accumulation


@pytest.mark.promise(14)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("mode", ["graph", "step"])
def test_four_batches_of_8_are_one_of_32_with_everything_in_it(count, mode, replicas):
    def optimizer():
        schedule = keras.optimizers.schedules.PiecewiseConstantDecay([5, 12], [0.1, 0.05, 0.01])
        return keras.optimizers.Adam(schedule)

    options = {"optimizer": optimizer, "clip_norm": 0.5, "ema": 0.9}
    whole = trained(32, **options)
    parts = trained(8, accumulate=4, strategy=replicas(count), mode=mode, **options)
    assert_same(whole, parts)
    assert parts[2].optimizers["optimizer"].iterations.numpy() == 20
    assert float(parts[2].optimizers["optimizer"].learning_rate.numpy()) == pytest.approx(0.01)


def test_the_step_is_the_same_for_all_micro_batches_and_summaries_are_of_all():
    def report(m, b, y):
        summary.scalar("step", tf.cast(current_step(), tf.float32))
        summary.scalar("number", tf.reduce_sum(b["x"]), reduce="sum")
        summary.histogram("x", b["x"])
        summary.image("first", tf.reshape(b["x"], [-1, 1, 1, 1]) / 32.0)
        return {"mean": tf.reduce_mean(y)}

    _, found, block = run(lambda: Line(report), data(8), steps=3, recording=True, accumulate=4)
    assert found["step"] == 2.0
    assert found["number"] == float(X.sum())
    histogram, image = block.summaries
    assert sorted(histogram.value.ravel().tolist()) == X.tolist()
    assert image.value.ravel() == pytest.approx(X[: len(image.value)] / 32)  # the first batch's


def test_dropout_differs_between_micro_batches_and_counts_on():
    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="model")
            self.w = self.add_weight(name="w", shape=(), initializer="ones")
            self.drop = keras.layers.Dropout(0.5, seed=1)

        def call(self, batch, training=False):
            x = self.drop(tf.ones([8]), training=training)
            summary.histogram("mask", x)
            # The number of survivors normalises: it must be counted with the very same masks.
            return {"mean": global_mean(self.w * batch["x"], tf.cast(x > 0, tf.float32))}

    values = np.ones(32, np.float32)
    dataset = tf.data.Dataset.from_tensor_slices({"x": values}).batch(8).repeat()
    train_step, found, block = run(Model, dataset, recording=True, accumulate=4)
    masks = block.summaries[0].value.reshape(4, 8)
    assert len({tuple(mask) for mask in masks}) == 4
    assert found["losses/mean"] == pytest.approx(1.0)
    assert train_step.model.w.numpy() == pytest.approx(0.9)


def test_a_variable_that_the_forward_assigns_itself_is_refused_when_accumulating():
    class Model(Line):
        def __init__(self):
            super().__init__()
            self.seen = tf.Variable(0.0, trainable=False)

        def call(self, batch, training=False):
            self.seen.assign_add(1.0)
            return {"mean": tf.reduce_mean(self.w * batch["x"])}

    train_step, iterator = make_step(Model, data(8), accumulate=2)
    with pytest.raises(LossError, match=r"assigns a tf.Variable.*add_weight"):
        Engine(train_step).run(iterator, 1)


def test_batches_left_over_at_the_end_are_not_an_update():
    dataset = tf.data.Dataset.from_tensor_slices({"x": X}).batch(8)
    train_step, iterator = make_step(Line, dataset, accumulate=3)
    with pytest.raises(tf.errors.OutOfRangeError):
        Engine(train_step).run(iterator, 2)
    assert train_step.counter.numpy() == 1
    assert train_step.model.w.numpy() == pytest.approx(1 - 0.1 * X[:24].mean())


@pytest.mark.parametrize("value", [0, 1.5, True])
def test_accumulate_must_be_a_number_of_batches(value):
    with pytest.raises(ValueError, match="accumulate must be a whole number"):
        TrainStep(Line(), keras.optimizers.SGD(), accumulate=value)


# Updates that are left out


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
    with pytest.raises(NonFiniteLossError, match="'gradient_norm'.* is not finite") as error:
        engine, done = Engine(train_step, mode=mode), 0
        while done < 100:
            done += engine.run(iterator, 100 - done).steps
    assert error.value.step == MOST_SKIPPED + 1
    assert train_step.model.w.numpy() == 1.0


# Uneven batches


@pytest.mark.promise(9)
@pytest.mark.parametrize(
    ("count", "mode"),
    [
        (2, "graph"),
        (2, "step"),
        (8, "graph"),  # more replicas than examples
        *(
            pytest.param(*slow, marks=pytest.mark.slow)
            for slow in ((4, "graph"), (4, "step"), (8, "step"))
        ),
    ],
)
def test_batches_that_do_not_divide_count_every_example_once(count, mode, replicas):
    def uneven(strategy, mode="graph"):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(1)
        columns = {"x": X[:19], "valid": VALID[:19]}
        dataset = tf.data.Dataset.from_tensor_slices(columns).batch(6).repeat()  # 6, 6, 6, 1
        train_step, iterator = make_step(Net, dataset, strategy=strategy)
        block = Engine(train_step, mode=mode).run(iterator, 8)
        state = {v.path: v.numpy() for v in train_step.model.weights}
        return state, dict(zip(block.names, block.rows().T, strict=True))

    assert_same(uneven(replicas(1)), uneven(replicas(count), mode=mode))


@pytest.mark.promise(9)
def test_a_replica_without_examples_keeps_its_statistics(replicas):
    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="model")
            self.norm = keras.layers.BatchNormalization(name="norm", momentum=0.5)

        def call(self, batch, training=False):
            return {"mean": tf.reduce_mean(self.norm(batch["x"][:, None], training=training) ** 2)}

    dataset = tf.data.Dataset.from_tensor_slices({"x": np.full(4, 8.0, np.float32)})
    dataset = dataset.batch(4).take(1).concatenate(dataset.take(1).batch(4))  # 4, then 1
    train_step, iterator = make_step(Model, dataset, strategy=replicas(2))
    Engine(train_step).run(iterator, 2)
    mean = train_step.strategy.experimental_local_results(train_step.model.norm.moving_mean.value)
    assert [float(one.numpy()[0]) for one in mean] == [6.0, 4.0]
    for variable in train_step.model.weights:
        assert np.isfinite(variable.numpy()).all(), variable.path


def test_tensors_that_disagree_about_the_number_of_examples_are_refused(replicas):
    dataset = tf.data.Dataset.from_tensors({"x": np.ones(4, "f"), "anchors": np.ones((9, 4), "f")})
    with pytest.raises(DataError, match="first dimensions of its tensors are 4, 9"):
        make_step(Line, dataset.repeat(), strategy=replicas(2))


# What embeddings give


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("mode", ["graph", "step"])
def test_the_norm_of_an_embeddings_gradient_counts_repeated_rows_together(count, mode, replicas):
    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="model")
            self.table = keras.layers.Embedding(3, 1, embeddings_initializer="ones", name="table")

        def call(self, batch, training=False):
            return {"sum": 100.0 * tf.reduce_mean(self.table(batch["i"]))}

    dataset = tf.data.Dataset.from_tensors({"i": np.zeros(100, np.int32)}).repeat()
    train_step, found, _ = run(
        Model,
        dataset,
        strategy=replicas(count),
        optimizer=lambda: keras.optimizers.SGD(1.0),
        clip_norm=1.0,
        mode=mode,
    )
    assert found["gradient_norm"] == pytest.approx(100.0)
    weights = train_step.model.table.embeddings.numpy().ravel()
    assert weights.tolist() == pytest.approx([0.0, 1.0, 1.0])


def test_an_embedding_accumulates():
    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="model")
            self.table = keras.layers.Embedding(4, 1, embeddings_initializer="ones", name="table")

        def call(self, batch, training=False):
            return {"mean": tf.reduce_mean(self.table(batch["i"]))}

    dataset = tf.data.Dataset.from_tensor_slices({"i": [0, 1, 1, 3]}).batch(2).repeat()
    train_step, _, _ = run(
        Model, dataset, optimizer=lambda: keras.optimizers.SGD(1.0), accumulate=2
    )
    weights = train_step.model.table.embeddings.numpy().ravel()
    assert weights.tolist() == pytest.approx([0.75, 0.5, 1.0, 0.75])


# Nothing is changed before the losses are known to be finite


class LateNan(keras.Model):
    """Its gradient is finite and soon there; that `late` is not, only after a long product."""

    def __init__(self):
        super().__init__(name="late")
        self.w = self.add_weight(name="w", shape=(3,), initializer="ones", constraint="non_neg")

    def call(self, batch, training=False):
        late = tf.eye(300) + batch["late"][0]
        for _ in range(20):
            late = tf.matmul(late, late) / 300.0
        late = tf.reduce_mean(late)
        return {
            "mean": tf.reduce_mean(self.w * batch["x"][0]),
            "late": late + 0.0 * tf.reduce_sum(self.w),
        }


class Constant(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return tf.constant(0.1)


OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.1),
    "nesterov": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.1, momentum=0.9, centered=True),
    "adagrad": lambda: keras.optimizers.Adagrad(0.1),
    "adam": lambda: keras.optimizers.Adam(0.1, amsgrad=True),
    "schedule": lambda: keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, 9)),
    "adamw": lambda: keras.optimizers.AdamW(0.1, weight_decay=0.1),
    "decay": lambda: keras.optimizers.SGD(0.1, weight_decay=0.1),
    "decay by schedule": lambda: keras.optimizers.AdamW(
        keras.optimizers.schedules.CosineDecay(0.1, 9), weight_decay=0.1
    ),
    "decay by own schedule": lambda: keras.optimizers.AdamW(Constant(), weight_decay=0.1),
    "decay by function": lambda: keras.optimizers.Adam(lambda: 0.1, weight_decay=0.1),
    "ema": lambda: keras.optimizers.Adam(0.1, use_ema=True),
    "nadam": lambda: keras.optimizers.Nadam(0.1),
}


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_late_bad_loss_finds_every_variable_as_it_was(name, count):
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(count)])
    late = np.array([0, 0, 0, 0, np.nan, np.nan], np.float32)
    dataset = tf.data.Dataset.from_tensor_slices({"x": X[:6], "late": late})
    dataset = dataset.repeat().batch(count, drop_remainder=True)
    with strategy.scope():
        step, iterator = make_step(LateNan, dataset, strategy=strategy, optimizer=OPTIMIZERS[name])
    engine = Engine(step)
    engine.run(iterator, 4 // count)
    before = [variable.numpy() for variable in step.state()]
    with pytest.raises(NonFiniteLossError, match="late"):
        engine.run(iterator, 1)
    for variable, value in zip(step.state(), before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value, err_msg=variable.name)
