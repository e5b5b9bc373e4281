import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.toys import Line, make_step, rows, run
from tfloss import summary
from tfloss.engine.engine import Engine
from tfloss.errors import SummaryError
from tfloss.forward.context import current_step

DATA = rows([1.0, 2.0, 3.0, 4.0], 4)


def recorded(report, count=1, replicas=None, data=DATA, **options):
    """Scalars and other summaries of one recording step."""

    def wrapped(model, batch, y):
        report(model, batch, y)
        return {"mean": tf.reduce_mean(y)}

    strategy = replicas(count) if replicas else None
    _, scalars, block = run(
        lambda: Line(wrapped), data, recording=True, strategy=strategy, **options
    )
    return scalars, {one.name: one for one in block.summaries}


# Values over replicas


@pytest.mark.parametrize("count", [1, 2, 4])
def test_scalars_are_averaged_or_summed_over_replicas(count, replicas):
    def report(model, batch, y):
        summary.scalar("mean", tf.reduce_mean(y))
        summary.scalar("examples", tf.size(y), reduce="sum")

    scalars, _ = recorded(report, count, replicas)
    assert scalars["mean"] == 2.5
    assert scalars["examples"] == 4.0


def test_histograms_see_all_replicas_and_images_come_from_the_first(replicas):
    def report(model, batch, y):
        summary.histogram("y", y)
        summary.image("x", tf.reshape(batch["x"], [-1, 1, 1, 1]) / 4.0, max_outputs=1)
        summary.text("t", tf.strings.as_string(y[0], precision=0))

    _, found = recorded(report, 2, replicas)
    assert sorted(found["y"].value.tolist()) == [1.0, 2.0, 3.0, 4.0]
    assert found["x"].value.tolist() == [[[[0.25]]]]
    assert found["t"].value == b"1"


@pytest.mark.parametrize("mode", ["graph", "step"])
@pytest.mark.parametrize("count", [1, 2])
def test_drawings_are_made_on_the_host_of_the_first_replica(count, mode, replicas):
    seen = []

    def bars(heights, widths):
        seen.append((heights.tolist(), widths.tolist()))
        return np.full([2, int(heights[0]), int(widths), 3], 7, np.uint8)

    def report(model, batch, y):
        with summary.scope("a"):
            summary.draw("bars", bars, y[:2] + 4.0, tf.constant(6.0))
        summary.draw("other", lambda y: np.zeros([1, 2, 2, 1]), y)

    _, found = recorded(report, count, replicas, mode=mode)
    assert seen == [([5.0, 6.0], 6.0)]
    assert set(found) == {"a/bars", "other"}
    assert found["a/bars"].kind == "image"
    assert found["a/bars"].value.shape == (2, 5, 6, 3) and (found["a/bars"].value == 7).all()


def test_a_drawing_that_fails_warns_once_and_training_continues(monkeypatch):
    # Another test of this process may have drawn under the same names.
    monkeypatch.setattr("tfloss.forward.recorded_summaries._failed", set())

    def crooked(y):
        raise KeyError("no such colour")

    def report(model, batch, y):
        summary.draw("broken", crooked, y)
        summary.draw("flat", lambda y: y, y)

    with (
        pytest.warns(UserWarning, match="'broken' can't be drawn: crooked fails .*no such colour"),
        pytest.warns(UserWarning, match=r"'flat' .* it returned shape \(4,\)"),
    ):
        scalars, found = recorded(report)
    assert not found and scalars["losses/total"] == 2.5
    with pytest.raises(SummaryError, match="'none' has no tensors"):
        summary.draw("none", crooked)


# Tags


class _Tagged(keras.layers.Layer):
    def call(self, x):
        with tf.name_scope("deep"):
            summary.scalar("given", tf.reduce_mean(x))
        tf.summary.scalar("plain", tf.reduce_mean(x))
        return x


@pytest.mark.promise(7, 21)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("mode", ["graph", "step"])
def test_a_tag_is_the_name_given_whatever_the_scopes(count, mode, replicas):
    if mode == "step" and count > 1:
        pytest.skip("covered by one replica")

    class Model(Line):
        def __init__(self):
            super().__init__(lambda m, b, y: tf.reduce_mean(m.layer(y)), name="net")
            self.layer = _Tagged(name="act")

    _, scalars, _ = run(Model, DATA, strategy=replicas(count), recording=True, mode=mode)
    assert scalars["given"] == 2.5
    assert scalars["net/act/plain"] == 2.5  # the layer's path, not while/replica_1/net_1_1/act


def test_scope_puts_a_prefix_before_tags():
    def report(model, batch, y):
        with summary.scope("rpn"), summary.scope("head"):
            summary.scalar("score", y[0])
        summary.scalar("score", y[1])

    scalars, _ = recorded(report)
    assert (scalars["rpn/head/score"], scalars["score"]) == (1.0, 2.0)


def test_the_same_name_twice_is_rejected_with_both_lines():
    def report(model, batch, y):
        summary.scalar("a", y[0])
        summary.scalar("a", y[1])

    with pytest.raises(SummaryError, match=r"'a' is recorded twice.*test_summary.py:\d+ .*:\d+ "):
        recorded(report)


# Plain tf.summary calls


def test_plain_calls_of_every_kind_are_recorded_once(replicas):
    def report(model, batch, y):
        tf.summary.scalar("s", tf.reduce_mean(y), step=7)
        tf.summary.histogram("h", y)
        tf.summary.image("i", tf.reshape(y, [-1, 1, 1, 1]) / 4.0)
        tf.summary.text("t", "hello")
        tf.summary.audio("a", tf.reshape(y, [1, -1, 1]) / 4.0, 100)
        tf.summary.scalar("s", tf.reduce_mean(y))

    scalars, found = recorded(report, 2, replicas)
    assert scalars["line/s"] == 2.5 and scalars["line/s_1"] == 2.5
    assert set(found) == {"line/h", "line/i", "line/t", "line/a"}
    assert all(one.options["metadata"] is not None for one in found.values())


def test_plain_calls_are_left_alone_outside_of_a_step(tmp_path):
    write = tf.summary.write
    recorded(lambda m, b, y: tf.summary.scalar("s", y[0]))
    assert tf.summary.write is write and tf.compat.v2.summary.write is write
    with tf.summary.create_file_writer(str(tmp_path)).as_default(step=3):
        assert bool(tf.summary.scalar("s", 1.0))


# Steps that are not due


@pytest.mark.promise(7)
def test_nothing_is_computed_on_a_step_that_is_not_due():
    calls = []

    def report(model, batch, y):
        def heavy(x):
            calls.append(1)
            return x

        summary.histogram("h", tf.numpy_function(heavy, [y], tf.float32, stateful=False))
        tf.summary.histogram("p", tf.numpy_function(heavy, [y], tf.float32, stateful=False))
        return {"mean": tf.reduce_mean(y)}

    train_step, iterator = make_step(lambda: Line(report), DATA)
    engine = Engine(train_step)
    engine.run(iterator, 10)
    assert calls == []
    assert {s.name for s in engine.run(iterator, 1, recording=True).summaries} == {"h", "line/p"}
    assert len(calls) == 2


def test_every_step_scalars_are_in_every_row():
    def report(model, batch, y):
        summary.scalar("often", tf.reduce_mean(y), every_step=True)
        summary.scalar("rare", tf.reduce_mean(y))
        return {"mean": tf.reduce_mean(y)}

    _, scalars, block = run(lambda: Line(report), DATA, 3)
    assert "often" in scalars and "rare" not in scalars
    assert block.rows().shape[0] == 3


# Outside of training


def test_summaries_do_nothing_outside_of_a_step():
    summary.scalar("a", 1.0)
    summary.image("b", "not an image at all")
    with summary.scope("c"):
        summary.histogram("d", [1.0])
    assert current_step().numpy() == 0 and current_step().dtype == tf.int64


# Where a summary can't leave


@pytest.mark.promise(22)
@pytest.mark.parametrize("recording", [False, True])
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("where", ["cond", "while", "map_fn", "function"])
def test_control_flow_is_refused_with_the_way_out(where, plain, recording):
    write = tf.summary.scalar if plain else summary.scalar

    def report(model, batch, y):
        def inner(x):
            write("inside", tf.reduce_mean(x))
            return x

        if where == "cond":
            tf.cond(tf.reduce_sum(y) > 0, lambda: inner(y), lambda: y)
        elif where == "while":
            tf.while_loop(lambda x: tf.reduce_sum(x) < 0, lambda x: (inner(x),), [y])
        elif where == "map_fn":
            tf.map_fn(inner, y)
        else:
            tf.function(inner)(y)
        return {"mean": tf.reduce_mean(y)}

    train_step, iterator = make_step(lambda: Line(report), DATA)
    with pytest.raises(SummaryError, match="inside' is computed inside a tf.cond.*record it out"):
        Engine(train_step).run(iterator, 1, recording=recording)


def test_in_a_rematerialised_block_a_summary_is_recorded_once():
    seen = []

    def report(model, batch, y):
        def block(x):
            seen.append(current_step())
            summary.scalar("inside", tf.reduce_mean(x))
            return x * 2.0

        model.add_loss(tf.reduce_mean(tf.recompute_grad(block)(y)))

    _, scalars, _ = run(lambda: Line(report), DATA, recording=True)
    assert scalars["inside"] == 2.5
    # Building; a silent and a recording trace, each with a forward pass, and again in the backward.
    assert len(seen) == 5
    assert seen[1] is seen[2] and seen[3] is seen[4]


# What is refused


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (lambda y: summary.scalar("s", y), "'s' is not a scalar: shape"),
        (lambda y: summary.scalar("", y[0]), "non-empty string"),
        (lambda y: summary.scalar("s", y[0], reduce="max"), "'mean' or 'sum', got 'max'"),
        (lambda y: summary.image("i", y), r"'i' must be \[batch, height"),
        (
            lambda y: summary.histogram("h", tf.strings.as_string(y)),
            "must have a numeric dtype, got string",
        ),
        (lambda y: summary.scalar("losses/mean", y[0]), "name of a curve that tfloss writes"),
    ],
)
def test_misuse_is_named(record, message):
    with pytest.raises(SummaryError, match=message):
        recorded(lambda m, b, y: record(y))


# The step


@pytest.mark.promise(5)
@pytest.mark.parametrize("count", [1, 2])
def test_current_step_is_right_on_every_step_of_a_call(count, replicas):
    def report(model, batch, y):
        assert current_step().dtype == tf.int64
        return {"step": tf.cast(current_step(), tf.float32) * model.w / model.w + 0 * y[0]}

    _, _, block = run(lambda: Line(report), DATA, 5, strategy=replicas(count))
    assert block.rows()[:, block.names.index("losses/step")] == pytest.approx(np.arange(5.0))


@pytest.mark.promise(7)
@pytest.mark.upstream
def test_upstream_freezes_the_writer_at_trace_time(tmp_path):
    first, second = (tf.summary.create_file_writer(str(tmp_path / n)) for n in "ab")

    @tf.function
    def traced(x):
        tf.summary.scalar("a", x, step=0)

    with first.as_default():
        traced(tf.constant(1.0))
    with second.as_default():
        traced(tf.constant(2.0))
    for writer in (first, second):
        writer.close()
    sizes = [sum(f.stat().st_size for f in (tmp_path / n).glob("*")) for n in "ab"]
    assert sizes[0] > 2 * sizes[1] or sizes[1] == 0
