import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss.forward.losses
from tests.toys import Line, make_step, rows, run
from tfloss.engine.engine import Engine
from tfloss.errors import LossError
from tfloss.forward.losses import LossWeights

ONES = rows([1.0, 2.0, 3.0, 4.0], 4)


def values(report, **options):
    return run(lambda: Line(report), ONES, **options)[1]


def reported(found):
    return {k.removeprefix("losses/"): v for k, v in found.items() if k.startswith("losses/")}


# Names


def test_nested_mapping_joins_keys():
    found = values(
        lambda m, b, y: {"rpn": {"box": tf.reduce_mean(y), "cls": 2 * tf.reduce_mean(y)}}
    )
    assert reported(found) == {"rpn/box": 2.5, "rpn/cls": 5.0, "total": 7.5}


def test_bare_scalar_is_named_loss():
    assert reported(values(lambda m, b, y: tf.reduce_sum(y))) == {"loss": 10.0, "total": 10.0}


def test_add_loss_is_named_by_layer_path_in_call_order():
    def report(model, batch, y):
        model.add_loss(tf.reduce_mean(y))
        model.add_loss(3 * tf.reduce_mean(y))
        tfloss.forward.losses.add_loss(model, kl=4 * tf.reduce_mean(y))

    expected = {"line": 2.5, "line_1": 7.5, "line/kl": 10.0, "total": 20.0}
    assert reported(values(report)) == expected


class _Adds(keras.layers.Layer):
    def call(self, x):
        self.add_loss(tf.reduce_mean(x))
        return x + 1.0


class _Twice(keras.Model):
    def __init__(self):
        super().__init__(name="twice")
        self.w = self.add_weight(name="w", shape=(), initializer="ones")
        self.blocks = [_Adds(name="a"), {"b": _Adds(name="b")}]

    def call(self, batch, training=False):
        x = self.w * batch["x"]
        x = self.blocks[1]["b"](self.blocks[0](self.blocks[0](x)))
        return None if training else x


def test_a_layer_called_twice_and_layers_in_lists():
    _, found, _ = run(_Twice, ONES)
    assert reported(found) == {"twice/a": 2.5, "twice/a_1": 3.5, "twice/b": 4.5, "total": 10.5}


def test_same_tensor_returned_and_added_counts_once():
    def report(model, batch, y):
        loss = tf.reduce_mean(y)
        model.add_loss(loss)
        return {"mean": loss}

    assert reported(values(report)) == {"mean": 2.5, "total": 2.5}


def test_equal_values_that_are_not_the_same_tensor_count_twice():
    def report(model, batch, y):
        model.add_loss(tf.reduce_mean(y))
        return {"mean": tf.reduce_mean(y)}

    assert reported(values(report)) == {"mean": 2.5, "line": 2.5, "total": 5.0}


def test_added_loss_makes_way_for_a_returned_name():
    def report(model, batch, y):
        model.add_loss(tf.reduce_mean(y))
        return {"line": tf.reduce_sum(y)}

    assert reported(values(report)) == {"line": 10.0, "line_1": 2.5, "total": 12.5}


def test_plain_keras_sees_a_named_loss_as_an_ordinary_one():
    def report(model, batch, y):
        tfloss.forward.losses.add_loss(model, kl=tf.reduce_mean(y))

    model = Line(report)
    model({"x": tf.constant([1.0, 3.0])}, training=True)
    assert [float(loss) for loss in model.losses] == [2.0]


# Regularizers


class _Regularized(keras.Model):
    """0.5 w² on w = 2, 0.1 b² on b = 3 (frozen or not), and an activity regularizer."""

    def __init__(self, freeze=False):
        super().__init__(name="m")
        l2 = keras.regularizers.L2
        self.w = self.add_weight(
            name="w", shape=(), initializer=keras.initializers.Constant(2.0), regularizer=l2(0.5)
        )
        self.dense = keras.layers.Dense(
            1,
            kernel_initializer=keras.initializers.Constant(3.0),
            kernel_regularizer=l2(0.1),
            activity_regularizer=l2(1.0),
            use_bias=False,
        )
        self.dense.trainable = not freeze

    def call(self, batch, training=False):
        y = self.dense(self.w * batch["x"][:, None])
        return {"mean": tf.reduce_mean(y)} if training else y


@pytest.mark.promise(9)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_regularizers_count_once_a_step_whatever_the_replicas(count, replicas):
    train_step, found, _ = run(_Regularized, ONES, strategy=replicas(count))
    # y = 6 x: mean 15, mean of squares 36 * 7.5; 0.5 * 4 + 0.1 * 9.
    assert found["losses/mean"] == pytest.approx(15.0)
    assert found["losses/m/dense"] == pytest.approx(270.0)
    assert found["losses/regularization"] == pytest.approx(2.9)
    assert found["losses/total"] == pytest.approx(287.9)
    # d/dw: mean 3 * 2.5, activity 2 w 9 * 7.5 = 270, L2 2 * 0.5 * 2.
    assert train_step.model.w.numpy() == pytest.approx(2 - 0.1 * (7.5 + 270 + 2))


def test_regularizer_of_a_frozen_layer_is_left_out_as_in_keras():
    _, found, _ = run(lambda: _Regularized(freeze=True), ONES)
    assert found["losses/regularization"] == pytest.approx(2.0)


# Replicas


@pytest.mark.parametrize("count", [1, 2, 4])
def test_objective_is_the_mean_over_replicas(count, replicas):
    def report(model, batch, y):
        return {"square": tf.reduce_mean(y**2), "mean": tf.reduce_mean(y)}

    data = rows(np.arange(1.0, 9.0), 8)
    train_step, found, _ = run(lambda: Line(report), data, strategy=replicas(count))
    assert found["losses/square"] == pytest.approx(25.5)
    assert found["losses/mean"] == pytest.approx(4.5)
    assert train_step.model.w.numpy() == pytest.approx(1 - 0.1 * (2 * 25.5 + 4.5))


class _Synced(keras.Model):
    """A synchronisation between two add_loss mixes replicas in stock Keras."""

    def __init__(self):
        super().__init__(name="m")
        self.bn = keras.layers.BatchNormalization(synchronized=True)
        self.bn.build((None, 1))

    def call(self, batch, training=False):
        x = batch["x"][:, None]
        self.add_loss(tf.reduce_mean(x) + 0.0 * tf.reduce_sum(self.bn.gamma))
        self.bn(x, training=training)
        self.add_loss(10.0 * tf.reduce_mean(x) + 0.0 * tf.reduce_sum(self.bn.gamma))
        return None if training else x


@pytest.mark.promise(1)
def test_replicas_keep_their_losses_apart_across_a_sync_point(replicas):
    # Replica 0 sees 1s, replica 1 sees 5s: [1, 10] and [5, 50], whose mean is [3, 30].
    data = rows([1.0, 1.0, 5.0, 5.0], 4)
    with pytest.warns(UserWarning, match="No loss reaches"):
        _, found, _ = run(_Synced, data, strategy=replicas(2))
    assert reported(found) == {"m": 3.0, "m_1": 30.0, "total": 33.0}


@pytest.mark.promise(1)
@pytest.mark.upstream
def test_upstream_mixes_losses_of_replicas(replicas):
    strategy = replicas(2)
    with strategy.scope():
        model = _Synced()
        model({"x": tf.ones([2])})
    feed = strategy.experimental_distribute_values_from_function(
        lambda c: tf.fill([2], [1.0, 5.0][c.replica_id_in_sync_group])
    )

    @tf.function
    def step(x):
        def replica(x):
            model({"x": x}, training=True)
            return tf.stack(model.losses)

        return strategy.run(replica, args=(x,))

    found = [v.numpy().tolist() for v in strategy.experimental_local_results(step(feed))]
    assert found != [[1.0, 10.0], [5.0, 50.0]]


def test_losses_are_gone_from_the_model_after_the_step():
    def report(model, batch, y):
        model.add_loss(tf.reduce_mean(y))

    train_step, _, _ = run(lambda: Line(report), ONES)
    assert train_step.model._losses == []  # no graph tensor is left on the layer


# Weights


def test_weights_by_name_glob_and_schedule():
    def report(model, batch, y):
        mean = tf.reduce_mean(y)
        return {"rpn": {"box": mean, "cls": 2 * mean}, "mask": 3 * mean, "plain": 4 * mean}

    schedule = keras.optimizers.schedules.PolynomialDecay(1.0, 10, 0.0)  # 1, 0.9, 0.8, ...
    weights = {"rpn/*": 0.5, "rpn/cls": 2, "mask": schedule}
    train_step, iterator = make_step(
        lambda: Line(report),
        ONES,
        optimizer=lambda: keras.optimizers.SGD(0.0),
        loss_weights=weights,
    )
    block = Engine(train_step).run(iterator, 3)
    table = [dict(zip(block.names, row, strict=True)) for row in block.rows()]
    assert [row["weighted_losses/mask"] for row in table] == pytest.approx([7.5, 6.75, 6.0])
    assert table[0]["losses/mask"] == 7.5
    assert table[0]["weighted_losses/rpn/box"] == 1.25
    assert table[0]["weighted_losses/rpn/cls"] == 10.0
    assert "weighted_losses/plain" not in table[0]
    assert table[2]["losses/total"] == pytest.approx(1.25 + 10.0 + 6.0 + 10.0)


def test_weight_changes_the_gradient():
    train_step, _, _ = run(Line, ONES, loss_weights={"mean": 3.0})
    assert train_step.model.w.numpy() == pytest.approx(1 - 0.1 * 3 * 2.5)


def test_unmatched_weight_names_the_losses_and_the_nearest():
    with pytest.raises(LossError, match=r"'rpn/boxx'\] matches no loss.*rpn/box.*mean 'rpn/box'"):
        values(lambda m, b, y: {"rpn/box": tf.reduce_mean(y)}, loss_weights={"rpn/boxx": 1.0})


def test_two_globs_for_one_loss_are_refused():
    with pytest.raises(LossError, match="several patterns"):
        LossWeights({"a*": 1.0, "*b": 2.0}).of("ab")


def test_a_weight_must_be_a_number_or_a_callable():
    with pytest.raises(LossError, match=r"loss_weights\['a'\]"):
        LossWeights({"a": "1"})


@pytest.mark.parametrize("count", [1, 2])
def test_a_loss_may_be_named_like_a_part_of_a_reserved_name(count, replicas):
    def report(model, batch, y):
        mean = tf.reduce_mean(y)
        return {"net": {"total": mean}, "total_loss": 2 * mean, "total": {"box": 3 * mean}}

    expected = {"net/total": 2.5, "total_loss": 5.0, "total/box": 7.5, "total": 15.0}
    assert reported(values(report, strategy=replicas(count))) == expected


@pytest.mark.promise(52)
@pytest.mark.parametrize("weight", [lambda step: 0.5, lambda step: tf.constant(0.5) * 2.0])
def test_a_function_that_is_frozen_is_refused_as_a_weight(weight):
    with pytest.raises(LossError, match="loss 'mean' depends neither on its argument, the step"):
        values(None, loss_weights={"mean": weight})


@pytest.mark.parametrize("mode", ["graph", "step"])
def test_a_weight_may_be_read_from_a_variable(mode):
    weight = tf.Variable(0.5, trainable=False)
    train_step, iterator = make_step(
        lambda: Line(None),
        ONES,
        optimizer=lambda: keras.optimizers.SGD(0.0),
        loss_weights={"mean": lambda step: weight * 2.0},
    )
    engine = Engine(train_step, mode=mode)
    totals = []
    for value in (0.5, 3.0):
        weight.assign(value)
        logs = engine.run(iterator, 1)
        totals.append(logs.rows()[0][logs.names.index("losses/total")])
    assert totals == [2.5, 15.0]


# What is refused


@pytest.mark.parametrize(
    ("report", "message"),
    [
        (lambda m, b, y: None, "reported no loss"),
        (lambda m, b, y: {}, "reported no loss"),
        (lambda m, b, y: {"a": y}, r"Loss 'a' is not a scalar: shape \(4,\)"),
        (lambda m, b, y: y, r"Loss 'loss' is not a scalar: shape \(4,\).*predictions"),
        (
            lambda m, b, y: m.add_loss(y),
            r"Loss 'line' is not a scalar.*tf.reduce_mean\(x\), .*tfloss.global_sum\(x\)",
        ),
        (lambda m, b, y: {"n": tf.size(y)}, "Loss 'n' has dtype int32"),
        (lambda m, b, y: (y, y), "a tuple of 2.*Predictions belong to the inference"),
        (lambda m, b, y: {"a": {"b": "text"}}, "a str under 'a/b'"),
        (lambda m, b, y: {1: tf.reduce_mean(y)}, "non-empty string, got 1"),
        (
            lambda m, b, y: {"a/b": tf.reduce_mean(y), "a": {"b": tf.reduce_mean(y)}},
            "same name 'a/b'",
        ),
        (lambda m, b, y: {"total": tf.reduce_mean(y)}, "named 'total': .* the objective"),
        (
            lambda m, b, y: {"regularization": tf.reduce_mean(y)},
            "named 'regularization': .* all weight regularizers",
        ),
        (lambda m, b, y: {"gradient_norm": tf.reduce_mean(y)}, "named 'gradient_norm'"),
        (lambda m, b, y: {"gradient_norm": {"a": tf.reduce_mean(y)}}, "named 'gradient_norm/a'"),
        (
            lambda m, b, y: keras.layers.Layer(name="total").add_loss(tf.reduce_mean(y)),
            "named 'total': .*If a layer adds it.*rename the layer",
        ),
        (
            lambda m, b, y: {"good": tf.reduce_mean(y), "bad": tf.reduce_mean(b["x"])},
            "gradient of loss 'bad' reaches no trainable variable",
        ),
        (
            lambda m, b, y: {
                "good": tf.reduce_mean(y),
                "bad": tf.reduce_mean(tf.stop_gradient(y)),
            },
            "gradient of loss 'bad' reaches no trainable variable",
        ),
        (
            lambda m, b, y: {
                "good": tf.reduce_mean(y),
                "bad": tf.cast(tf.argmax(y), tf.float32),
            },
            "gradient of loss 'bad' reaches no trainable variable",
        ),
    ],
)
@pytest.mark.parametrize("mode", ["graph", "step"])
def test_bad_reports_are_refused_before_the_first_update(report, message, mode):
    train_step, iterator = make_step(lambda: Line(report), ONES)
    with pytest.raises(LossError, match=message):
        Engine(train_step, mode=mode).run(iterator, 1)
    assert train_step.model.w.numpy() == 1.0
    assert train_step.counter.numpy() == 0


def test_a_python_float_is_a_constant_loss():
    found = values(lambda m, b, y: {"good": tf.reduce_mean(y), "off": 0.0})
    assert reported(found) == {"good": 2.5, "off": 0.0, "total": 2.5}


# Precision


@pytest.mark.promise(1)
def test_losses_are_float32_under_mixed_precision():
    def report(model, batch, y):
        model.add_loss(tf.cast(tf.reduce_mean(y), tf.float64))
        return {"half": tf.cast(tf.reduce_mean(y), tf.float16)}

    assert reported(values(report)) == {"half": 2.5, "line": 2.5, "total": 5.0}


# Where a loss can't leave


@pytest.mark.promise(22)
@pytest.mark.parametrize("where", ["cond", "while", "map_fn", "function"])
def test_add_loss_in_control_flow_is_refused_with_the_way_out(where):
    def report(model, batch, y):
        def inner(x):
            model.add_loss(tf.reduce_mean(x))
            return x

        if where == "cond":
            tf.cond(tf.reduce_sum(y) > 0, lambda: inner(y), lambda: y)
        elif where == "while":
            tf.while_loop(lambda x: tf.reduce_sum(x) < 0, lambda x: (inner(x),), [y])
        elif where == "map_fn":
            tf.map_fn(inner, y)
        else:
            tf.function(inner)(y)

    with pytest.raises(LossError, match=r"layer 'line' adds.*test_losses.py.*Return the value"):
        values(report)


@pytest.mark.promise(10)
@pytest.mark.parametrize("kind", ["tf", "keras"])
def test_add_loss_in_a_rematerialised_block_is_refused(kind):
    def report(model, batch, y):
        def block(x):
            model.add_loss(tf.reduce_mean(x))
            return x * 2.0

        remat = tf.recompute_grad if kind == "tf" else keras.remat
        return {"mean": tf.reduce_mean(remat(block)(y))}

    with pytest.raises(LossError, match="gradient would be lost"):
        values(report)


@pytest.mark.promise(9)
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_keras_loss_object_is_not_divided_by_the_replicas(count, reduction, replicas):
    def report(m, b, y):
        loss = keras.losses.MeanSquaredError(reduction=reduction)
        return {"mse": loss(tf.zeros_like(y), y)}

    data = rows([1.0, 2.0, 3.0, 4.0], 4)
    train_step, found, _ = run(lambda: Line(report), data, strategy=replicas(count))
    assert found["losses/mse"] == pytest.approx(7.5)
    assert train_step.model.w.numpy() == pytest.approx(1 - 0.1 * 15.0)


@pytest.mark.upstream
@pytest.mark.promise(9)
def test_upstream_divides_some_losses_by_the_replicas_and_some_not(replicas):
    y, zero = tf.ones([2, 1]), tf.zeros([2, 1])
    with replicas(2).scope():
        assert float(keras.losses.MeanSquaredError()(zero, y)) == 0.5
        assert float(tf.reduce_mean(keras.losses.mean_squared_error(zero, y))) == 1.0
