"""One update: its rate, its losses and norms, its warnings, and the check before it."""

import types
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.toys import Line, make_step, rows, run
from tfloss.engine.engine import Engine
from tfloss.errors import NonFiniteLossError
from tfloss.optimizers.groups import Group
from tfloss.step.minimize import TraceWarnings


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("mode", ["graph", "step"])
def test_rate_losses_and_norm_of_one_update(mode, count, replicas):
    def optimizer():
        schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.5, 0.25])
        return keras.optimizers.SGD(schedule)

    def report(model, batch, y):
        return {"mean": tf.reduce_mean(y), "square": tf.reduce_mean(y) ** 2}

    train_step, found, _ = run(
        lambda: Line(report),
        rows([2.0], 1) if count == 1 else rows([2.0, 2.0], 2),
        strategy=replicas(count),
        optimizer=optimizer,
        clip_norm=1.0,
        loss_weights={"square": 0.25},
        mode=mode,
    )
    # 2 w + (2 w)^2/4 at w = 1: gradient 2 + 2 w, clipped to 1, at the rate of step 0.
    assert found == pytest.approx(
        {
            "losses/mean": 2.0,
            "losses/square": 4.0,
            "losses/total": 3.0,
            "weighted_losses/square": 1.0,
            "learning_rate": 0.5,
            "gradient_norm": 4.0,
        }
    )
    assert train_step.model.w.numpy() == pytest.approx(0.5)
    assert train_step.optimizers["optimizer"].iterations.numpy() == 1


def test_the_norm_is_known_where_a_gradient_can_skip_the_update_or_is_clipped():
    norms = []
    for options in (
        {},
        {"clip_norm": 9.0},
        {"skip_nonfinite": True},
        {"precision": "mixed_float16"},
    ):
        _, found, _ = run(Line, rows([1.0], 1), **options)
        norms.append((found.get("gradient_norm"), found.get("skipped")))

    assert norms == [(None, None), (1.0, None), (1.0, 0.0), (1.0, 0.0)]


class _Pair(keras.Model):
    def __init__(self):
        super().__init__(name="pair")
        self.a = self.add_weight(name="a", shape=(), initializer="ones")
        self.b = self.add_weight(name="b", shape=(), initializer="ones")

    def call(self, batch, training=False):
        x = tf.reduce_mean(batch["x"])
        return {"a": 3.0 * x * self.a, "b": 4.0 * x * self.b} if training else batch["x"]


def test_a_group_that_is_not_due_has_losses_and_no_gradient():
    def optimizer():
        return {
            "a": Group(keras.optimizers.SGD(0.1), lambda model: [model.a]),
            "b": Group(keras.optimizers.SGD(0.1), lambda model: [model.b], every=2, offset=1),
        }

    train_step, iterator = make_step(_Pair, rows([1.0], 1), optimizer=optimizer, clip_norm=100.0)
    engine, found = Engine(train_step), []
    for _ in range(2):
        logs = engine.run(iterator, 1)
        found.append(dict(zip(logs.names, logs.rows()[0].tolist(), strict=True)))

    assert [one["losses/b"] for one in found] == [4.0, 4.0]
    assert [one["gradient_norm/a"] for one in found] == [3.0, 3.0]
    assert [one["gradient_norm/b"] for one in found] == [0.0, 4.0]
    assert train_step.model.a.numpy() == pytest.approx(1.0 - 2 * 0.3)
    assert train_step.model.b.numpy() == pytest.approx(1.0 - 0.4)


# Warnings


def test_each_untrained_variable_is_named_once():
    def trace(unreached=(), untracked=()):
        return types.SimpleNamespace(partial=[], unreached=unreached, untracked=untracked)

    a, b = keras.Variable([1.0], name="a"), keras.Variable([1.0], name="b")
    raw, untrained = tf.Variable(1.0, name="raw"), TraceWarnings()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        untrained.warn(trace())
        untrained.warn(trace([a]))
        untrained.warn(trace([a, b], [raw]))
        untrained.warn(trace([b], [raw]))

    unreached = "No loss reaches these trainable variables, so they are not trained: {}."
    messages = [str(one.message) for one in found]
    assert messages[:2] == [unreached.format("a"), unreached.format("b")]
    assert len(messages) == 3 and "Keras doesn't know" in messages[2] and "raw:0" in messages[2]


@pytest.mark.promise(41)
@pytest.mark.parametrize("options", [{}, {"accumulate": 2}], ids=["replicas", "accumulate"])
def test_a_loss_divided_by_a_number_of_one_replicas_examples_is_named(options, replicas):
    dice = keras.losses.Dice()

    def report(model, batch, y):
        return {"overlap": dice(batch["x"], y)}

    count, batch = (1, 2) if options else (2, 4)
    # With w = 1 it is 1 - 2 sum(xx) / 2 sum(x): 0 for the ones, -2 for the threes, -1.5 for all.
    data = rows([1.0, 1.0, 3.0, 3.0], batch)
    with pytest.warns(UserWarning, match=r"'overlap' is divided by a number .*test_minimize.py:"):
        _, found, _ = run(lambda: Line(report), data, strategy=replicas(count), **options)
    assert found["losses/overlap"] == pytest.approx(-1.0, abs=1e-5)


def test_unreached_variables_are_named_in_a_warning():
    class Extra(Line):
        def __init__(self):
            super().__init__()
            self.unused = self.add_weight(name="unused", shape=())

    with pytest.warns(UserWarning, match="line/unused"):
        run(Extra, rows([1.0], 1))


def test_a_raw_variable_that_takes_part_is_pointed_out():
    class Model(Line):
        def __init__(self):
            super().__init__()
            self.scale = tf.Variable(1.0, name="scale")

        def call(self, batch, training=False):
            return {"mean": tf.reduce_mean(self.scale * self.w * batch["x"])}

    with pytest.warns(UserWarning, match="that Keras doesn't know.*scale.*add_weight"):
        run(Model, rows([1.0], 1))


# Nothing changes before the losses are known to be finite


class _LateNan(keras.Model):
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


class _Constant(keras.optimizers.schedules.LearningRateSchedule):
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
    "decay by own schedule": lambda: keras.optimizers.AdamW(_Constant(), weight_decay=0.1),
    "decay by function": lambda: keras.optimizers.Adam(lambda: 0.1, weight_decay=0.1),
    "nadam": lambda: keras.optimizers.Nadam(0.1),
}


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_late_bad_loss_finds_every_variable_as_it_was(name, count):
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(count)])
    late = np.array([0, 0, 0, 0, np.nan, np.nan], np.float32)
    dataset = tf.data.Dataset.from_tensor_slices({"x": np.ones(6, np.float32), "late": late})
    dataset = dataset.repeat().batch(count, drop_remainder=True)
    with strategy.scope():
        step, iterator = make_step(_LateNan, dataset, strategy=strategy, optimizer=OPTIMIZERS[name])
    engine = Engine(step)
    engine.run(iterator, 4 // count)
    before = [variable.numpy() for variable in step.state()]
    with pytest.raises(NonFiniteLossError, match="late"):
        engine.run(iterator, 1)
    for variable, value in zip(step.state(), before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value, err_msg=variable.name)


@pytest.mark.parametrize(
    ("count", "accumulate", "said"), [(1, 1, False), (2, 1, True), (1, 2, True)]
)
def test_a_sum_over_the_examples_of_a_replica_is_said_once(count, accumulate, said, replicas):
    def report(model, batch, y):
        return {"sum": tf.reduce_sum(y), "right": tfloss.global_sum(y)}

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        train_step, losses, _ = run(
            lambda: Line(report),
            rows([1.0, 2.0, 3.0, 4.0], 4 // accumulate),
            steps=2,
            strategy=replicas(count),
            accumulate=accumulate,
            recording=True,
            optimizer=lambda: keras.optimizers.SGD(0.0),
        )
    texts = [str(one.message) for one in found if "over the examples" in str(one.message)]
    assert len(texts) == said
    assert not said or "Loss 'sum'" in texts[0] and f"({__file__}:" in texts[0]
    # 1 + 2 + 3 + 4, and the mean of the sums of two parts.
    assert losses["losses/right"] == 10.0
    assert losses["losses/sum"] == (5.0 if said else 10.0)


class _Head(Line):
    """A layer that only the inference forward calls, and one with a build of its own."""

    def __init__(self):
        super().__init__()
        self.head = keras.layers.Dense(1, name="head")
        self.flat = keras.layers.Flatten()

    def call(self, batch, training=False):
        found = super().call(batch, training)
        return found if training else self.head(self.flat(found["y"][:, None]))


def test_layers_of_the_inference_forward_only_are_named_at_the_start():
    for built in (False, True):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")

            def make(built=built):
                model = _Head()
                if built:
                    model({"x": tf.ones([1])})
                return model

            run(make, rows([1.0], 1), steps=2)
        texts = [str(one.message) for one in found if "head" in str(one.message)]
        (text,) = [one for one in texts if "looks like it has unbuilt" not in one]
        if built:
            assert "not trained: line/head/kernel, line/head/bias." in text
        else:
            assert "training forward doesn't call these layers: line/head. They have no" in text
