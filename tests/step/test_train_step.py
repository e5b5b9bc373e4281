import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.toys import Line, make_step, rows, run
from tfloss import summary
from tfloss.engine.engine import Engine
from tfloss.errors import DataError, LossError, SummaryError
from tfloss.step.train_step import TrainStep

DATA = rows([1.0, 2.0, 3.0, 4.0], 4)


@pytest.mark.parametrize("clip_norm", [0, -1.0])
def test_clip_norm_must_be_positive(clip_norm):
    with pytest.raises(ValueError, match="clip_norm must be positive"):
        TrainStep(Line(), keras.optimizers.SGD(), clip_norm=clip_norm)


# Replicas, XLA, K steps a call: the same numbers


class _Net(keras.Model):
    def __init__(self):
        super().__init__(name="net")
        self.blocks = [keras.layers.Dense(8, activation="relu"), keras.layers.Dense(3)]
        self.bn = keras.layers.BatchNormalization(synchronized=True)

    def call(self, batch, training=False):
        x = self.blocks[1](self.bn(self.blocks[0](batch["x"]), training=training))
        if not training:
            return x
        self.add_loss(0.1 * tf.reduce_mean(x**2))
        return {"ce": tf.reduce_mean(tf.nn.log_softmax(x)[:, 0])}


def _trained(steps, per_call, mode="graph", **options):
    keras.utils.set_random_seed(1)
    data = rows(np.random.RandomState(0).randn(64, 5), 16)
    train_step, iterator = make_step(
        _Net, data, optimizer=lambda: keras.optimizers.Adam(0.01), **options
    )
    engine = Engine(train_step, mode=mode)
    blocks = [engine.run(iterator, per_call) for _ in range(steps // per_call)]
    weights = [v.numpy() for v in train_step.model.trainable_variables]
    return weights, np.concatenate([b.rows() for b in blocks]), engine


def test_many_steps_a_call_are_bit_for_bit_single_steps():
    one, curve, _ = _trained(12, 1)
    many, curve_many, engine = _trained(12, 6)
    np.testing.assert_array_equal(curve, curve_many)
    for a, b in zip(one, many, strict=True):
        np.testing.assert_array_equal(a, b)
    assert engine.traces == 1


@pytest.mark.promise(26)
@pytest.mark.parametrize("count", [2, 4])
def test_replicas_agree_with_one_in_calls_of_many_steps(count, replicas):
    one, curve, _ = _trained(12, 6)
    many, curve_many, _ = _trained(12, 6, strategy=replicas(count))
    np.testing.assert_allclose(curve, curve_many, rtol=1e-5, atol=1e-6)
    for a, b in zip(one, many, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_xla_agrees_with_the_graph():
    one, curve, _ = _trained(12, 6)
    compiled, curve_compiled, _ = _trained(12, 6, mode="step")
    np.testing.assert_allclose(curve, curve_compiled, rtol=1e-5, atol=1e-6)
    for a, b in zip(one, compiled, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


# A batch reaches the model as it is


class _Graph(tf.experimental.ExtensionType):
    nodes: tf.Tensor
    edges: tf.Tensor


@pytest.mark.parametrize("mode", ["graph", "step"])
def test_a_batch_may_be_an_extension_type(mode):
    def sent(model, batch, y):  # the mean over edges of w * nodes[source]
        return {"sent": tf.reduce_mean(tf.gather(model.w * batch.nodes, batch.edges[:, 0]))}

    class Model(Line):
        def call(self, batch, training=False):
            return self.report(self, batch, None)

    graph = _Graph(tf.constant([1.0, 2.0, 6.0]), tf.constant([[0, 1], [2, 1]]))
    data = tf.data.Dataset.from_tensors(graph).repeat()
    step, iterator = make_step(
        lambda: Model(sent), data, optimizer=lambda: keras.optimizers.SGD(1.0)
    )
    Engine(step, mode=mode).run(iterator, 2)
    assert float(step.model.w) == 1.0 - 2 * (1.0 + 6.0) / 2


@pytest.mark.promise(11)
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_labels_reach_the_forward_bit_exact(policy):
    seen = {}

    class Model(keras.Model):
        def __init__(self):
            super().__init__(dtype=policy)
            self.dense = keras.layers.Dense(1, dtype=policy)

        def call(self, batch, training=False):
            seen.update(
                {k: v.dtype for k, v in batch.items()}, compute=self.dense(batch["x"]).dtype
            )
            error = tf.reduce_max(tf.abs(batch["box"] - 70001.0))
            return {
                "e": tf.cast(error, tf.float32)
                + 0.0 * tf.cast(tf.reduce_sum(self.dense.kernel), tf.float32)
            }

    data = tf.data.Dataset.from_tensors(
        {"x": tf.ones([2, 3]), "box": tf.fill([2], 70001.0), "f64": tf.ones([2], tf.float64)}
    ).repeat()
    with pytest.warns(UserWarning, match="bias"):
        _, found, _ = run(Model, data)
    assert found["losses/e"] == 0.0
    assert seen["box"] == tf.float32 and seen["f64"] == tf.float64
    assert (
        seen["compute"]
        == {"float32": tf.float32, "mixed_bfloat16": tf.bfloat16, "mixed_float16": tf.float16}[
            policy
        ]
    )


@pytest.mark.promise(11)
@pytest.mark.upstream
def test_upstream_casts_labels():
    class Model(keras.Model):
        def call(self, batch):
            return batch["box"]

    boxes = Model(dtype="mixed_float16")({"box": tf.constant([70001.0])})
    assert not np.isfinite(boxes.numpy()).all()


# A batch may be any nest


@pytest.mark.parametrize("count", [1, 2])
def test_batches_of_tuples_strings_and_ragged_tensors(count, replicas):
    class Model(Line):
        def call(self, batch, training=False):
            (x, words), ragged = batch
            size = tf.cast(tf.strings.length(words), tf.float32)
            total = tf.reduce_mean(self.w * (x + size + tf.reduce_sum(ragged, -1)))
            return total if training else x

    ragged = tf.ragged.constant([[1.0], [2.0, 3.0], [], [4.0]])
    data = tf.data.Dataset.from_tensor_slices(
        (([1.0, 2.0, 3.0, 4.0], ["a", "bb", "", "c"]), ragged)
    )
    data = data.batch(4, drop_remainder=True).repeat()
    _, found, _ = run(Model, data, strategy=replicas(count))
    assert found["losses/loss"] == pytest.approx((10 + 4 + 10) / 4)


# Micro-batches


def test_batches_left_over_at_the_end_are_not_an_update():
    values = np.arange(1.0, 33.0, dtype=np.float32)
    dataset = tf.data.Dataset.from_tensor_slices({"x": values}).batch(8)
    train_step, iterator = make_step(Line, dataset, accumulate=3)
    with pytest.raises(tf.errors.OutOfRangeError):
        Engine(train_step).run(iterator, 2)
    assert train_step.counter.numpy() == 1
    assert train_step.model.w.numpy() == pytest.approx(1 - 0.1 * values[:24].mean())


@pytest.mark.parametrize("value", [0, 1.5, True])
def test_accumulate_must_be_a_positive_integer(value):
    with pytest.raises(ValueError, match="accumulate must be an integer, at least 1"):
        TrainStep(Line(), keras.optimizers.SGD(), accumulate=value)


def test_tensors_that_disagree_about_the_number_of_examples_are_refused(replicas):
    dataset = tf.data.Dataset.from_tensors({"x": np.ones(4, "f"), "anchors": np.ones((9, 4), "f")})
    with pytest.raises(DataError, match=r"batch\['anchors'\] 9, batch\['x'\] 4"):
        make_step(Line, dataset.repeat(), strategy=replicas(2))


# Other algorithms


class _Alternating(TrainStep):
    """Minimises |w - 3| for one weight, then, with its new value, |v - w| for the other."""

    def step(self, batch):
        m = self.model
        first = self.minimize(
            lambda b: {"w": tf.reduce_mean(tf.abs(m.w - 3.0 * b["x"] / b["x"]))},
            batch,
            group="w",
        )
        second = self.minimize(
            lambda b: {"v": tf.abs(m.v - tf.stop_gradient(tf.identity(m.w)))},
            batch,
            group="v",
        )
        return {**first, **second}


class _Pair(keras.Model):
    def __init__(self):
        super().__init__(name="pair")
        self.w = self.add_weight(name="w", shape=(), initializer="zeros")
        self.v = self.add_weight(name="v", shape=(), initializer="zeros")
        self.built = True


@pytest.mark.parametrize("count", [1, 2])
def test_a_step_of_two_alternating_updates(count, replicas):
    train_step, found, _ = run(
        _Pair,
        DATA,
        steps=2,
        strategy=replicas(count),
        step=_Alternating,
        optimizer=lambda: {
            "w": (keras.optimizers.SGD(1.0), lambda model: [model.w]),
            "v": (keras.optimizers.SGD(0.5), lambda model: [model.v]),
        },
    )
    # w: 0, 1, 2. v is pulled to the new w: 0.5, 1. Losses of step 2: |1-3|, |0.5-2|.
    assert train_step.model.w.numpy() == pytest.approx(2.0)
    assert train_step.model.v.numpy() == pytest.approx(1.0)
    assert (found["losses/w"], found["losses/v"]) == (2.0, 1.5)
    assert found["losses/total"] == 3.5
    assert train_step.counter.numpy() == 2


@pytest.mark.parametrize("kind", ["loss", "summary"])
def test_two_updates_must_report_under_different_names(kind):
    class Twice(TrainStep):
        def step(self, batch):
            def forward(name):
                def replica(b):
                    summary.scalar("s" if kind == "summary" else name, 1.0)
                    loss = tf.reduce_mean(self.model.w * b["x"])
                    return {"a": loss, name: loss} if kind == "loss" else {name: loss}

                return replica

            return {**self.minimize(forward("x"), batch), **self.minimize(forward("y"), batch)}

    train_step, iterator = make_step(Line, DATA, step=Twice)
    with pytest.raises((LossError, SummaryError), match="minimize"):
        Engine(train_step).run(iterator, 1, recording=True)


class _Repeated(TrainStep):
    """Three steps down |w| for the critic, then one for another group, with the same names."""

    def step(self, batch):
        def forward(b):
            summary.scalar("w", tf.identity(self.model.w), every_step=True)
            summary.histogram("all", tf.reshape(tf.identity(self.model.w), [1]))
            return {"mean": tf.reduce_mean(self.model.w * b["x"])}

        for _ in range(3):
            losses = self.minimize(forward, batch, group="w")
        return {**losses, **self.minimize(lambda b: {"v": -self.model.v}, batch, group="v")}


@pytest.mark.parametrize(("mode", "count"), [("graph", 1), ("step", 2), ("loop", 1)])
def test_a_repeated_call_needs_no_new_names_and_curves_are_means_over_the_calls(
    mode, count, replicas
):
    train_step, found, logs = run(
        _Pair,
        rows([1.0] * count, count),
        step=_Repeated,
        strategy=replicas(count),
        mode=mode,
        recording=mode != "loop",
        loss_weights={"mean": 2.0},
        optimizer=lambda: {
            "w": (keras.optimizers.SGD(0.5), lambda model: [model.w]),
            "v": (keras.optimizers.SGD(0.5), lambda model: [model.v]),
        },
    )
    # The gradient of 2 w is 2, the rate 0.5: w is 0, -1, -2 in the calls, and -3 at the end.
    assert train_step.model.w.numpy() == -3.0
    assert found["losses/mean"] == -1.0
    assert found["weighted_losses/mean"] == -2.0
    assert found["losses/v"] == 0.0
    assert found["losses/total"] == -2.0
    assert "losses/mean_1" not in found
    if mode != "loop":
        assert found["w"] == -1.0
        (histogram,) = logs.summaries
        assert sorted(np.ravel(histogram.value)) == sorted([0.0, -1.0, -2.0] * count)


class _TwoCalls(TrainStep):
    """The first call adds 1 w x; the second adds 2 w x, and 4 w x named like a renamed loss."""

    def step(self, batch):
        def add(*factors):
            def replica(b):
                for factor in factors:
                    self.model.add_loss(factor * tf.reduce_mean(self.model.w * b["x"]))

            return replica

        first = self.minimize(add(1.0), batch)
        return {**first, **self.minimize(add(2.0, 4.0), batch)}


def test_added_losses_of_two_calls_keep_their_names_and_values_apart():
    options = {"step": _TwoCalls, "optimizer": lambda: keras.optimizers.SGD(0.0)}
    _, found, _ = run(Line, rows([1.0], 1), **options)
    losses = {name: found[name] for name in found if name.startswith("losses/")}
    # The second call has line and line_1. The first is renamed, and does not take line_1's place.
    assert losses == {
        "losses/line": 1.0,
        "losses/line_2": 2.0,
        "losses/line_1": 4.0,
        "losses/total": 7.0,
    }
    # A weight belongs to a name in the forward pass, and so to both calls.
    _, found, _ = run(Line, rows([1.0], 1), loss_weights={"line": 10.0}, **options)
    assert found["losses/total"] == 34.0
    with pytest.raises(LossError, match=r"curve of loss 'line' .*write loss_weights\['line'\]"):
        run(Line, rows([1.0], 1), loss_weights={"line_2": 10.0}, **options)


def test_a_step_can_not_return_a_loss_named_total():
    class Sums(TrainStep):
        def step(self, batch):
            losses = self.minimize(self.forward, batch)
            return {**losses, "total": losses["mean"] * 2.0}

    with pytest.raises(LossError, match="`step` returned a loss named 'total'"):
        run(Line, rows([1.0], 1), step=Sums)


def test_a_step_that_updates_nothing_is_refused():
    class Idle(TrainStep):
        def step(self, batch):
            return {}

    train_step, iterator = make_step(Line, DATA, step=Idle)
    with pytest.raises(LossError, match="never called self.minimize"):
        Engine(train_step).run(iterator, 1)
