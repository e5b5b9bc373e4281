"""A loop compiled whole gives what the graph gives: weights, losses, errors, summaries."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.equivalence.kinds import KINDS, difference, train
from tests.toys import Line, make_step, rows
from tests.trainer.test_trainer import Witness
from tfloss import summary
from tfloss.checkpoint import CheckpointDirectory
from tfloss.data import Source
from tfloss.data.stacked_batches import BatchStacker
from tfloss.engine.engine import Engine
from tfloss.errors import DataError, ModelError, NonFiniteLossError
from tfloss.hooks import Every, SaveCheckpoint
from tfloss.step.skipping import MOST_SKIPPED

ROOT = rows([4.0, 3.0, 2.0, 1.0, 0.0, -1.0, 5.0, 5.0], 2)  # batch 3 has a negative number


def _root(model, batch, y):
    """sqrt(w x): NaN in the third batch."""
    return {"root": tf.reduce_mean(tf.sqrt(y)), "mean": tf.reduce_mean(y)}


def _ahead(iterator, per_step=1):
    blocks = BatchStacker(iterator, per_step)
    blocks.reads_ahead = True
    return blocks


@pytest.mark.parametrize("name", KINDS)
def test_weights_are_those_of_the_graph(name):
    kind = KINDS[name]
    if kind.synchronised:
        pytest.skip("has nothing to synchronise with on one replica")
    one = tf.distribute.get_strategy()
    assert difference(train(kind, one, "graph"), train(kind, one, "loop")) < 1e-5


class Random(keras.Model):
    """Dropout, statistics and a schedule: all that a step changes beside weights."""

    def __init__(self):
        super().__init__(name="random")
        self.dense = keras.layers.Dense(8, activation="relu")
        self.norm = keras.layers.BatchNormalization()
        self.drop = keras.layers.Dropout(0.3, seed=3)
        self.last = keras.layers.Dense(1)

    def call(self, batch, training=False):
        x = self.norm(self.dense(batch["x"][:, tf.newaxis]), training=training)
        y = tf.cast(self.last(self.drop(x, training=training))[:, 0], tf.float32)
        if not training:
            return {"y": y}
        summary.histogram("y", y)
        summary.scalar("largest", tf.reduce_max(y))
        step = tf.cast(tfloss.current_step(), tf.float32)
        return {"error": tf.reduce_mean((y - 1.0) ** 2) * (1.0 + 0.1 * step)}


def _trained(jit, workdir=None, steps=(60,), **options):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    rate = keras.optimizers.schedules.CosineDecay(0.05, 60)
    # Adam makes whole steps of differences in rounding.
    optimizer = keras.optimizers.SGD if "precision" in options else keras.optimizers.Adam
    witness = Witness(Every(steps=13))
    trainer = tfloss.Trainer(
        Random(), optimizer(rate), jit=jit, seed=0, log_every=7, workdir=workdir,
        default_hooks=False, hooks=[witness, SaveCheckpoint(Every(steps=20))], **options,
    )  # fmt: skip
    if workdir is None:
        trainer.hooks = trainer._own_hooks = [witness]
    data = tf.data.Dataset.from_tensor_slices({"x": np.linspace(0, 1, 37).astype(np.float32)})
    data = data.batch(5).repeat()  # the eighth batch of each epoch is short
    for until in steps:
        trainer.train(data, until)
    state = {k: v.numpy() for k, v in trainer.state.variables().items()}
    return state, witness


def _sized(sizes):
    """A stacker of batches of these sizes; the last batch is always the same."""
    last = np.random.default_rng(0).normal(size=sizes[-1]).astype(np.float32)
    parts = [*(np.ones(size, np.float32) for size in sizes[:-1]), last]
    spec = {"x": tf.TensorSpec([None], tf.float32)}
    return BatchStacker(
        iter(
            tf.data.Dataset.from_generator(lambda: ({"x": x} for x in parts), output_signature=spec)
        )
    )


def test_a_recorded_step_has_the_same_bits_whatever_sizes_came_before():
    """A resumed run may meet the short last batch of an epoch before any other."""
    keras.utils.set_random_seed(0)
    spec = tf.data.Dataset.from_tensors({"x": np.ones(8, np.float32)}).unbatch().batch(37)
    step, _ = make_step(Random, spec, optimizer=lambda: keras.optimizers.Adam(0.05))
    states = step.state()
    before = [one.numpy() for one in states]
    found = []
    for sizes in ([27, 37], [37, 27, 37], [37]):
        engine, stacker = Engine(step, mode="loop"), _sized(sizes)
        for _ in sizes:
            for variable, value in zip(states, before, strict=True):
                variable.assign(value)
            logs = engine.run(stacker, 1, recording=True)
        found.append((logs.rows().tobytes(), [one.numpy().tobytes() for one in states]))
        assert engine.traces == 1  # the loop's own, of the first size, is not counted
    assert found[0] == found[1] == found[2]


OPTIONS = [
    {"log_every_step": True},
    {"accumulate": 3},
    {"ema": 0.9, "clip_norm": 0.5},
    {"precision": "mixed_float16"},  # which may skip an update, too
    *(
        pytest.param(one, marks=pytest.mark.slow)
        for one in ({}, {"skip_nonfinite": True}, {"precision": "mixed_bfloat16"})
    ),
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "+".join(o) or "plain")
def test_state_logs_hooks_and_summaries_are_those_of_the_graph(options):
    graph, seen = _trained(False, **options)
    loop, witness = _trained("loop", **options)
    tolerance = 0.2 if "precision" in options else 1e-3
    assert set(graph) == set(loop)
    # In half precision rounding differs, and a kernel near 0 may go either way of its ReLU.
    for name, value in graph.items() if "precision" not in options else ():
        np.testing.assert_allclose(loop[name], value, rtol=tolerance, atol=1e-5, err_msg=name)
    assert witness.calls == seen.calls == [13, 26, 39, 52]
    assert [(step, names) for step, _, names in witness.logs] == [
        (step, names) for step, _, names in seen.logs
    ]
    for (_, one, _), (_, other, _) in zip(seen.logs, witness.logs, strict=True):
        assert set(one) == set(other)
        if options.get("precision") == "mixed_float16":
            continue  # by rounding, a gradient may overflow in one of them only
        error = "losses/error"
        np.testing.assert_allclose(other[error], one[error], tolerance, tolerance / 10)
        assert other["learning_rate"] == pytest.approx(one["learning_rate"])


def test_a_run_in_pieces_is_the_whole_run(tmp_path):
    whole, _ = _trained("loop")
    pieces, _ = _trained("loop", steps=(14, 35, 60))
    for name, value in whole.items():
        np.testing.assert_array_equal(pieces[name], value, err_msg=name)


@pytest.mark.parametrize("per_step", [1, 2])
def test_a_loss_that_is_not_finite_stops_before_its_update(per_step):
    def optimizer():
        return keras.optimizers.Adam(0.01)

    data = ROOT if per_step == 1 else ROOT.unbatch().batch(1, drop_remainder=True)
    train_step, iterator = make_step(
        lambda: Line(_root), data, optimizer=optimizer, accumulate=per_step
    )
    engine, blocks = Engine(train_step, mode="loop"), _ahead(iterator, per_step)
    with pytest.raises(NonFiniteLossError, match="Loss 'root' is not finite at step 3") as e:
        for _ in range(8):
            engine.run(blocks, 8)
    graph_step, iterator = make_step(
        lambda: Line(_root), data, optimizer=optimizer, accumulate=per_step
    )
    with pytest.raises(NonFiniteLossError) as expected:
        Engine(graph_step).run(iterator, 8)
    assert e.value.step == expected.value.step == 3
    assert e.value.losses["mean"] == pytest.approx(expected.value.losses["mean"])
    seen = np.concatenate([np.asarray(part["x"]) for part in e.value.batch])
    assert seen.tolist() == [0.0, -1.0]
    assert train_step.counter.numpy() == 2
    ours, theirs = (
        [*step.model.variables, *step.optimizers["optimizer"].variables]
        for step in (train_step, graph_step)
    )
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-6)


@pytest.mark.parametrize("size", [1, 2])
def test_after_a_loss_that_is_not_finite_the_next_batch_comes(size):
    """A bad batch of the size of the others, or of another one, which is a graph's."""
    groups = [[4.0, 1.0], [9.0, 4.0], [-1.0] * size, [1.0, 9.0], [1.0, 4.0]]
    data = tf.data.Dataset.from_generator(
        lambda: ({"x": one} for one in groups), output_signature={"x": tf.TensorSpec([None])}
    ).repeat()
    stopped = {}
    for mode in ("graph", "loop"):
        train_step, iterator = make_step(
            lambda: Line(_root), data, optimizer=lambda: keras.optimizers.SGD(0.001)
        )
        engine = Engine(train_step, mode=mode)
        source = _ahead(iterator) if mode == "loop" else iterator
        stopped[mode] = []
        for _ in range(3):
            with pytest.raises(NonFiniteLossError) as error:
                for _ in range(20):
                    engine.run(source, 8)
            stopped[mode].append((error.value.step, train_step.model.w.numpy()))
    assert [step for step, _ in stopped["loop"]] == [3, 7, 11]
    for one, other in zip(stopped["loop"], stopped["graph"], strict=True):
        assert one == pytest.approx(other)


def test_statistics_are_those_before_the_bad_step():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.norm = keras.layers.BatchNormalization()

        def call(self, batch, training=False):
            y = self.norm(batch["x"][:, tf.newaxis], training=training)
            return tf.reduce_mean(y + tf.sqrt(batch["x"])[:, tf.newaxis])

    train_step, iterator = make_step(Model, ROOT)
    engine, blocks = Engine(train_step, mode="loop"), _ahead(iterator)
    with pytest.raises(NonFiniteLossError):
        for _ in range(3):
            engine.run(blocks, 8)
    mean = 0.0
    for batch in (3.5, 1.5):
        mean = 0.99 * mean + 0.01 * batch
    assert train_step.model.norm.moving_mean.numpy()[0] == pytest.approx(mean)


def test_state_of_every_shape_and_type_is_put_back():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.wide = keras.layers.Dense(3, kernel_initializer="ones")
            self.dropout = keras.layers.Dropout(0.5, seed=1)
            self.narrow = keras.layers.Dense(2, kernel_initializer="ones")
            self.count = self.add_weight(shape=(), dtype="int32", trainable=False)

        def call(self, batch, training=False):
            self.count.assign_add(1)
            x = batch["x"][:, tf.newaxis]
            y = self.narrow(self.dropout(self.wide(x), training=training))
            return tf.reduce_mean(y + tf.sqrt(x))

    def stopped(mode):
        train_step, iterator = make_step(Model, ROOT, optimizer=lambda: keras.optimizers.Adam(0.1))
        engine = Engine(train_step, mode=mode)
        source = _ahead(iterator) if mode == "loop" else iterator
        with pytest.raises(NonFiniteLossError):
            for _ in range(3):
                engine.run(source, 8)
        assert train_step.model.count.numpy() == 2
        return [one.numpy() for one in train_step.state()]

    ours, theirs = stopped("loop"), stopped("graph")
    assert {one.dtype.name for one in ours} == {"float32", "int32", "int64"}
    assert {one.ndim for one in ours} == {0, 1, 2}
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_many_skipped_updates_in_a_row_are_a_failure():
    train_step, iterator = make_step(lambda: Line(_root), rows([-1.0], 1), skip_nonfinite=True)
    engine, blocks, done = Engine(train_step, mode="loop"), _ahead(iterator), 0
    with pytest.raises(NonFiniteLossError):
        while done < 100:
            done += engine.run(blocks, 7).steps
    assert MOST_SKIPPED - 7 <= done <= MOST_SKIPPED
    assert train_step.model.w.numpy() == 1.0


def test_without_the_guard_nothing_is_checked():
    train_step, iterator = make_step(lambda: Line(_root), ROOT)
    engine, blocks = Engine(train_step, mode="loop", guard=False), _ahead(iterator)
    engine.run(blocks, 1)
    block = engine.run(blocks, 4)
    assert np.isnan(block.rows()[:, block.names.index("losses/total")]).tolist() == [
        False, True, True, True,
    ]  # fmt: skip


def test_one_trace_whatever_the_cuts():
    train_step, iterator = make_step(Line, rows(np.ones(8), 2))
    engine, blocks = Engine(train_step, mode="loop"), _ahead(iterator)
    done = 0
    for steps in (1, 7, 100, 3, 150, 99, 200):
        done += engine.run(blocks, steps).steps
    assert engine.run(blocks, 5).first == done
    assert engine._compiled._run.experimental_get_tracing_count() == 1
    assert engine.traces == 0  # nothing ran as a graph


def test_batches_of_many_sizes_share_a_trace():
    sizes = [8, *range(1, 40)]
    data = tf.data.Dataset.from_generator(
        lambda: ({"x": np.ones(n, np.float32)} for n in sizes),
        output_signature={"x": tf.TensorSpec([None])},
    )
    trainer = tfloss.Trainer(Line(), keras.optimizers.SGD(0.001), jit="loop", default_hooks=False)
    trainer.train(data, len(sizes))
    assert trainer._modes._engines["loop"].traces <= 2


def test_what_xla_can_not_compile_is_named_and_its_batches_are_not_lost():
    def report(model, batch, y):
        return tf.reduce_mean(y) + 0.0 * tf.strings.to_number(tf.strings.as_string(y[0]))

    train_step, iterator = make_step(lambda: Line(report), rows([1.0, 2.0], 1))
    engine, blocks = Engine(train_step, mode="loop"), _ahead(iterator)
    with pytest.raises(tf.errors.InvalidArgumentError) as e:
        engine.run(blocks, 10)
    line = report.__code__.co_firstlineno
    assert f"AsString ({__file__}:{line + 1}, in report)" in str(e.value)
    assert train_step.counter.numpy() == 0
    found = [blocks.take_step()[0]["x"].numpy().tolist() for _ in range(10)]
    assert found == [[1.0], [2.0]] * 5


def _read(row):
    """Some numbers can't be read: the first one, two that follow each other, two others."""
    number = row["x"]
    bad = tf.reduce_any(number == [0, 175, 176, 275, 625])
    text = tf.where(bad, "corrupt", tf.strings.as_string(number % 7))
    return {"x": tf.strings.to_number(text)[tf.newaxis]}


def _numbers(kind):
    numbers = {"x": np.arange(1500)}
    if kind == "source":
        return Source(numbers, batch_size=2, seed=3, map=_read)
    rows = tf.data.Dataset.from_tensor_slices(numbers)
    return rows.shuffle(100, seed=3, reshuffle_each_iteration=False).map(_read).batch(2)


@pytest.mark.slow  # tests/engine/test_mode_runner.py shows it quickly
@pytest.mark.parametrize("kind", ["iterator", "source"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_an_error_in_the_data_stops_after_the_steps_before_it(kind, accumulate, tmp_path):
    """As it does in a graph, though it was met when these were not trained on yet.

    And one can go on, in a new process too.
    """
    last = 600 // accumulate

    def process(jit, workdir):
        return _numbers(kind), tfloss.Trainer(
            Line(lambda model, batch, y: tf.reduce_mean((y - 2.0) ** 2)),
            keras.optimizers.SGD(0.01),
            jit=jit,
            accumulate=accumulate,
            workdir=workdir,
            hooks=[SaveCheckpoint(Every(steps=25))],
            default_hooks=False,
        )

    def run(jit, stop=last):
        ends = []
        for steps in dict.fromkeys((stop, last)):
            data, trainer = process(jit, tmp_path / f"{jit}_{stop}")
            while trainer.step < steps:
                try:
                    trainer.train(data, steps)
                except tf.errors.InvalidArgumentError as error:
                    assert "corrupt" in str(error)
                    ends.append((trainer.step, trainer.model.w.numpy()))
        return [*ends, (trainer.step, trainer.model.w.numpy())]

    graph = run(False)
    assert len(graph) >= 5
    for other in (run("loop"), run("loop", stop=last // 2 + 3), run(False, stop=last // 2 + 3)):
        assert [step for step, _ in other] == [step for step, _ in graph]
        weights = [[w for _, w in one] for one in (other, graph)]
        np.testing.assert_allclose(*weights, rtol=1e-5)


@pytest.mark.parametrize("endless", [True, False])
def test_a_generator_that_raises_stops_after_the_steps_before_it(endless, tmp_path):
    """It can't be moved back, yet a checkpoint is saved at its last good batch, in all modes."""

    def numbers():
        for i in range(950):
            yield {"x": [i % 7 / 7]}
        raise ValueError("batch 950 is corrupt")

    def run(jit):
        signature = {"x": tf.TensorSpec([1], tf.float32)}
        data = tf.data.Dataset.from_generator(numbers, output_signature=signature)
        trainer = tfloss.Trainer(
            Line(lambda model, batch, y: tf.reduce_mean((y - 2.0) ** 2)),
            keras.optimizers.SGD(0.01),
            jit=jit,
            workdir=tmp_path / str(jit),
            hooks=[SaveCheckpoint(Every(steps=950))],
            default_hooks=False,
        )
        with pytest.raises(tf.errors.OpError, match="batch 950 is corrupt"):
            trainer.train(data.repeat() if endless else data, 2000)
        assert trainer.step == 950
        assert CheckpointDirectory(tmp_path / str(jit) / "checkpoints").steps() == [950]
        return trainer.model.w.numpy()

    weights = 1.0
    for i in range(950):
        x = i % 7 / 7
        weights -= 0.01 * 2 * (weights * x - 2.0) * x
    for jit in (False, True, "loop"):
        np.testing.assert_allclose(run(jit), weights, rtol=1e-4)


@pytest.mark.parametrize("kind", ["iterator", "generator"])
def test_a_resumed_run_meets_the_bad_batch_again(kind, tmp_path):
    """The first process was past the error when it saved: its checkpoint must not be."""

    def numbers():
        for i in range(900):
            if i == 600:
                raise ValueError("batch 600 is corrupt")
            yield {"x": [i % 7 / 7]}

    def read(i):
        text = tf.where(tf.equal(i, 600), "corrupt", tf.strings.as_string(i % 7))
        return {"x": [tf.strings.to_number(text) / 7.0]}

    def process():
        data = tf.data.Dataset.range(900).map(read)
        if kind == "generator":
            signature = {"x": tf.TensorSpec([1], tf.float32)}
            data = tf.data.Dataset.from_generator(numbers, output_signature=signature)
        return data, tfloss.Trainer(
            Line(lambda model, batch, y: tf.reduce_mean((y - 2.0) ** 2)),
            keras.optimizers.SGD(0.01),
            jit="loop",
            workdir=tmp_path,
            hooks=[SaveCheckpoint(Every(steps=600))],
            default_hooks=False,
        )

    data, trainer = process()
    trainer.train(data, 600)
    with trainer._feed.input.paused() as ahead:
        assert ahead is None  # it is behind the error
    data, trainer = process()
    with pytest.raises(tf.errors.OpError, match="corrupt"):
        trainer.train(data, 700)
    weights = 1.0
    for i in range(600):
        x = i % 7 / 7
        weights -= 0.01 * 2 * (weights * x - 2.0) * x
    assert trainer.step == 600
    np.testing.assert_allclose(trainer.model.w.numpy(), weights, rtol=1e-4)


def test_data_that_can_not_be_stacked_is_refused():
    data = tf.data.Dataset.from_tensors({"x": [1.0], "name": ["a"]}).repeat()
    trainer = tfloss.Trainer(Line(), keras.optimizers.SGD(0.1), jit="loop")
    with pytest.raises(DataError, match="jit='loop' needs batches.*holds strings"):
        trainer.train(data, 3)


def test_several_replicas_are_refused(replicas):
    strategy = replicas(2)
    with strategy.scope():
        model, optimizer = Line(), keras.optimizers.SGD(0.1)
    trainer = tfloss.Trainer(model, optimizer, strategy=strategy, jit="loop")
    with pytest.raises(ModelError, match="for one replica"):
        trainer.train(rows([1.0, 2.0], 2), 3)


def test_the_end_of_the_data_is_found():
    trainer = tfloss.Trainer(Line(), keras.optimizers.SGD(0.1), jit="loop", default_hooks=False)
    data = tf.data.Dataset.from_tensor_slices({"x": np.ones(10, np.float32)}).batch(3)
    with pytest.raises(DataError, match="ended after 4 batches, at step 4 of 9"):
        trainer.train(data, 9)
    trainer.train(data, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert trainer.step == 4
