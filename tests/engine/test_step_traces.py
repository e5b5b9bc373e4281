"""A step is traced once, and its copies compute what a trace of their own would."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.engine.test_xla_loop import Random
from tests.equivalence import kinds
from tests.equivalence.kinds import KINDS
from tests.toys import Line, make_step, rows
from tfloss import summary
from tfloss.data.stacked_batches import BatchStacker
from tfloss.engine.engine import Engine
from tfloss.engine.step_traces import StepTraces
from tfloss.errors import LossError, NonFiniteLossError

NUMBER = tf.TensorSpec([], tf.int32)


def engines(step, iterator, *, shared=True, **options):
    """A loop and a graph; the graph was traced first, with or without the loop's traces."""
    traces = StepTraces(step, guard=True)
    graph = Engine(step, traces=traces, **options)
    graph._silent.get_concrete_function(iterator, NUMBER)
    traces = traces if shared else StepTraces(step, guard=True)
    return Engine(step, mode="loop", traces=traces, **options), graph


def ahead(iterator, per_step=1):
    blocks = BatchStacker(iterator, per_step)
    blocks.reads_ahead = True
    return blocks


def state(step):
    return [one.numpy() for one in step.state()]


def same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


class Counted(Random):
    traced = 0

    def call(self, batch, training=False):
        Counted.traced += training
        return super().call(batch, training)


def trained(shared, model=Random, drop=True, steps=40, log_every_step=False, **options):
    """Rows and state of a loop, with recorded and odd steps in between."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    rate = keras.optimizers.schedules.CosineDecay(0.05, 60)
    data = tf.data.Dataset.from_tensor_slices({"x": np.linspace(0, 1, 37).astype(np.float32)})
    data = data.batch(5, drop_remainder=drop).repeat()
    step, iterator = make_step(
        model, data, optimizer=lambda: keras.optimizers.Adam(rate), **options
    )
    Counted.traced = 0
    loop, _ = engines(step, iterator, shared=shared, log_every_step=log_every_step)
    blocks, done, rows_, summaries = ahead(iterator, step.accumulate), 0, [], []
    while done < steps:
        recording = done % 13 == 9
        most = 1 if recording else min(8, (9 - done) % 13)
        logs = loop.run(blocks, most, recording=recording)
        done += logs.steps
        (summaries if recording else rows_).append(logs.rows())
        summaries += [one.value for one in logs.summaries]
    found = [np.concatenate(rows_), *summaries]
    return found, state(step), Counted.traced


def test_the_model_s_python_runs_once_for_graph_loop_and_single_step():
    """The eighth batch of each epoch is short: it runs as a graph."""
    assert trained(True, Counted, drop=False)[2] == 2  # the other one records
    assert trained(False, Counted, drop=False)[2] == 4  # as in a loop without a graph


@pytest.mark.parametrize("shared", [True, False])
def test_the_size_of_the_rows_is_known_if_the_step_was_traced(shared, monkeypatch):
    """XLA's program of the body is made twice if it isn't, which takes a fifth of compiling."""
    array, shapes = tf.TensorArray, []

    def noted(*args, element_shape, **kwargs):
        shapes.append(element_shape)
        return array(*args, element_shape=element_shape, **kwargs)

    data = tf.data.Dataset.from_tensors({"x": tf.ones([4])}).repeat()
    step, iterator = make_step(Random, data)
    loop, _ = engines(step, iterator, shared=shared)
    blocks = ahead(iterator)
    inputs = blocks.take(3)
    monkeypatch.setattr(tf, "TensorArray", noted)
    loop._compiled.trace(inputs)
    # The guard adds whether the step passed.
    assert shapes == [[len(loop._compiled._output.scalars) + 1 if shared else None]]


OPTIONS = [
    {},
    {"accumulate": 3},
    *(
        pytest.param(one, marks=pytest.mark.slow)
        for one in [
            {"log_every_step": True},
            {"ema": 0.9, "clip_norm": 0.5},
            {"skip_nonfinite": True},
            {"precision": "mixed_bfloat16"},
            {"precision": "mixed_float16"},
        ]
    ),
]


@pytest.mark.parametrize("options", OPTIONS, ids="+".join)
def test_a_copied_step_gives_the_bits_of_a_traced_one(options):
    """Dropout, statistics, a schedule and summaries, in loops, single and recorded steps."""
    rows, after, _ = trained(True, **options)
    expected, expected_after, _ = trained(False, **options)
    same(rows, expected)
    same(after, expected_after)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_all_kinds_have_the_bits_of_a_traced_loop(name, monkeypatch):
    kind = KINDS[name]
    if kind.synchronised:
        pytest.skip("has nothing to synchronise with on one replica")
    found = {}
    for shared in (True, False):

        def make(step, mode, shared=shared):
            batches = kinds.data(kind)
            return engines(step, iter(batches), shared=shared)[0]

        monkeypatch.setattr(kinds, "Engine", make)
        found[shared] = kinds.train(kind, tf.distribute.get_strategy(), "loop")
    for path, value in found[False].items():
        np.testing.assert_array_equal(found[True][path], value, err_msg=path)


def test_a_loss_that_is_not_finite_ends_a_copied_step_as_a_traced_one():
    raw = tf.Variable(0.0, trainable=False)

    def report(model, batch, y):
        raw.assign_add(1.0)
        return {"root": tf.reduce_mean(tf.sqrt(y)), "mean": tf.reduce_mean(y)}

    data = rows([4.0, 3.0, 2.0, 1.0, 0.0, -1.0, 5.0, 5.0], 2)  # batch 3 has a negative number
    found = []
    for shared in (True, False):
        raw.assign(0.0)
        step, iterator = make_step(
            lambda: Line(report), data, optimizer=lambda: keras.optimizers.Adam(0.01)
        )
        loop, _ = engines(step, iterator, shared=shared)
        blocks = ahead(iterator)
        with pytest.raises(NonFiniteLossError, match="Loss 'root' is not finite at step 3") as e:
            for _ in range(4):
                loop.run(blocks, 8)
        assert step.counter.numpy() == 2 and np.asarray(e.value.batch[0]["x"])[1] == -1.0
        assert raw.numpy() == 3.0  # unknown to the model, which has changed it in the bad step
        found.append(state(step))
    same(*found)


def test_a_gradient_that_is_not_finite_is_found_in_a_copied_loop():
    def report(model, batch, y):
        return {"a": tf.reduce_sum(tf.sqrt(tf.maximum(y - 1.0, 0.0)))}  # infinite at y = 1

    step, iterator = make_step(
        lambda: Line(report), rows([4.0, 3.0, 1.0, 5.0], 1),
        optimizer=lambda: keras.optimizers.SGD(0.0),
    )  # fmt: skip
    loop, _ = engines(step, iterator)
    blocks = ahead(iterator)
    with pytest.raises(NonFiniteLossError, match="gradient"):
        for _ in range(3):
            loop.run(blocks, 4)
    assert step.counter.numpy() == 2


def test_what_xla_can_not_compile_is_named_with_its_line():
    def report(model, batch, y):
        lost = tf.cond(
            y[0] > 0.0,
            lambda: tf.strings.to_number(tf.strings.as_string(y[0])),
            lambda: 0.0,
        )
        return tf.reduce_mean(y) + 0.0 * lost

    step, iterator = make_step(lambda: Line(report), rows([1.0, 2.0], 1))
    loop, _ = engines(step, iterator)
    with pytest.raises(tf.errors.InvalidArgumentError) as e:
        loop.run(ahead(iterator), 10)
    line = report.__code__.co_firstlineno
    assert f"AsString ({__file__}:{line + 3}, in <lambda>)" in str(e.value)
    assert "PyFunc" not in str(e.value) and "Iterator" not in str(e.value)


def test_batches_of_other_shapes_are_traced():
    def report(model, batch, y):
        return tf.reduce_mean(y) * float(y.shape[0])

    step, iterator = make_step(lambda: Line(report), rows([1.0] * 8, 2))
    loop, _ = engines(step, iterator)
    four = ahead(iter(rows([1.0] * 8, 4)))
    assert loop.run(four, 1).rows()[0, 0] == 4.0
    two = ahead(iterator)
    assert loop.run(two, 1).steps == 1


def test_histograms_of_a_recorded_copy():
    class Model(Line):
        def call(self, batch, training=False):
            summary.histogram("x", batch["x"])
            return super().call(batch, training)

    step, iterator = make_step(Model, rows([1.0, 2.0, 3.0, 4.0], 2))
    loop, graph = engines(step, iterator)
    first = graph.run(iterator, 1, recording=True)
    again = loop.run(ahead(iterator), 1, recording=True)
    assert first.summaries[0].name == again.summaries[0].name == "x"
    assert np.shape(again.summaries[0].value) == np.shape(first.summaries[0].value)


def test_without_graphs_each_step_runs_its_own_python():
    """As docs/debugging.md advises to look into a step."""
    seen = []

    def report(model, batch, y):
        if tf.executing_eagerly():
            seen.append(float(y[0]))
        return tf.reduce_mean(y)

    step, iterator = make_step(lambda: Line(report), rows([1.0, 2.0], 1))
    seen.clear()
    tf.config.run_functions_eagerly(True)
    try:
        logs = Engine(step).run(iterator, 3)
    finally:
        tf.config.run_functions_eagerly(False)
    assert seen == pytest.approx([1.0, 1.8, 0.7]) and logs.steps == 3


def test_a_trace_that_failed_is_not_copied():
    calls = []

    step, iterator = make_step(Line, rows([1.0, 2.0], 1))
    engine = Engine(step, traces=StepTraces(step, guard=True))
    kept = engine._kept

    def fails(kind, call):
        calls.append(1)
        if len(calls) == 1:
            raise LossError("not yet")
        return kept(kind, call)

    engine._kept = fails
    with pytest.raises(LossError):
        engine.run(iterator, 2)
    assert engine.run(iterator, 2).steps == 2 and step.counter.numpy() == 2
    assert len(engine._traces._traced[False, None]) == 2
