import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.toys import make_step, rows
from tfloss.engine.engine import Engine
from tfloss.hooks import SaveCheckpoint
from tfloss.step.random_states import STRIDE

DATA = rows(np.ones([8, 1]), 8)


class _Masks(keras.Model):
    """Logs its Dropout masks, all replicas' in one histogram."""

    def __init__(self):
        super().__init__(name="masks")
        self.drop = keras.layers.Dropout(0.5, seed=11, name="drop")
        self.w = self.add_weight(name="w", shape=(), initializer="ones")

    def call(self, batch, training=False):
        mask = self.drop(tf.ones([32]), training=training)
        if not training:
            return mask
        tfloss.summary.histogram("mask", mask)
        return tf.reduce_mean(mask * self.w)


def _masks(engine, iterator, count):
    summaries = engine.run(iterator, 1, recording=True).summaries
    return np.reshape(summaries[0].value, [count, 32])


@pytest.mark.promise(6)
@pytest.mark.parametrize("count", [2, 4])
def test_replicas_draw_their_own_masks_and_again_in_the_next_run(count, replicas):
    runs = []
    for _ in range(2):
        train_step, iterator = make_step(_Masks, DATA, strategy=replicas(count))
        engine = Engine(train_step)
        runs.append([_masks(engine, iterator, count) for _ in range(3)])
    np.testing.assert_array_equal(runs[0], runs[1])
    for masks in runs[0]:
        assert len({mask.tobytes() for mask in masks}) == count


def test_the_first_replica_is_as_on_one(replicas):
    found = []
    for count in (1, 2):
        train_step, iterator = make_step(_Masks, DATA, strategy=replicas(count))
        found.append(_masks(Engine(train_step), iterator, count)[0])
    np.testing.assert_array_equal(*found)


@pytest.mark.promise(6)
@pytest.mark.upstream
def test_upstream_draws_the_same_on_all_replicas(replicas):
    strategy = replicas(2)
    with strategy.scope():
        drop = keras.layers.Dropout(0.5)
        drop.build([32])
    masks = tf.function(lambda: strategy.run(lambda: drop(tf.ones([32]), training=True)))()
    np.testing.assert_array_equal(*strategy.experimental_local_results(masks))


def _trainer(strategy, workdir):
    keras.utils.clear_session(free_memory=False)
    with strategy.scope():
        model, optimizer = _Masks(), keras.optimizers.SGD(0.1)
    return tfloss.Trainer(
        model,
        optimizer,
        strategy=strategy,
        workdir=workdir,
        seed=4,
        hooks=[SaveCheckpoint()],
        default_hooks=False,
    )


def _states(trainer):
    state = trainer.model.drop.seed_generator.state.value
    return [v.numpy().tolist() for v in trainer.strategy.experimental_local_results(state)]


@pytest.mark.promise(6)
def test_a_resumed_run_draws_what_the_undisturbed_one_draws(replicas, tmp_path):
    straight = _trainer(replicas(2), tmp_path / "a")
    result = straight.train(DATA, steps=9)
    _trainer(replicas(2), tmp_path / "b").train(DATA, steps=4)
    resumed = _trainer(replicas(2), tmp_path / "b")
    assert resumed.train(DATA, steps=9) == result
    assert _states(resumed) == _states(straight)
    first, second = _states(resumed)
    assert second == [first[0] + STRIDE, first[1]]


def test_on_another_number_of_replicas_the_first_goes_on(replicas, tmp_path):
    two = _trainer(replicas(2), tmp_path)
    two.train(DATA, steps=4)
    four = _trainer(replicas(4), tmp_path)
    four.restore(DATA)
    assert _states(four)[:2] == _states(two)
    assert len({tuple(s) for s in _states(four)}) == 4


def test_a_second_trainer_of_the_same_model_does_not_split_again(replicas):
    strategy = replicas(2)
    with strategy.scope():
        model = _Masks()
        optimizers = [keras.optimizers.SGD(0.1) for _ in range(2)]
    for optimizer in optimizers:
        one = tfloss.Trainer(model, optimizer, strategy=strategy, default_hooks=False)
        one.train(DATA, steps=2)
    first, second = _states(one)
    assert second[0] - first[0] == STRIDE and first[1] == second[1] == 4


class Drawing(keras.Model):
    """Draws without a seed, in each of the ways that Keras has."""

    def __init__(self):
        super().__init__(name="drawing")
        self.w = self.add_weight(name="w", shape=(), initializer="ones")
        self.last = self.add_weight(
            name="last", shape=(3,), initializer="zeros", trainable=False, aggregation="none"
        )

    def call(self, batch, training=False):
        if not training:
            return {"y": batch["x"] + keras.random.normal([1])}
        drawn = [keras.random.uniform([]), keras.random.normal([])]
        drawn.append(tf.reduce_sum(keras.random.shuffle(tf.range(3.0)) * [1.0, 10.0, 100.0]))
        self.last.assign(tf.stack(drawn))
        kept = keras.random.dropout(tf.ones([64]), 0.5)
        return self.w * (drawn[0] + tf.reduce_mean(kept))


def _drawing(strategy, workdir=None, **options):
    keras.utils.clear_session(free_memory=False)
    with strategy.scope():
        model, optimizer = Drawing(), keras.optimizers.SGD(0.1)
    options = {"seed": 4, "default_hooks": False, "log_every": 1} | options
    return tfloss.Trainer(model, optimizer, strategy=strategy, workdir=workdir, **options)


def _drawn(trainer):
    value = trainer.model.last.value
    return [one.numpy().tolist() for one in getattr(value, "values", (value,))]


CASES = [(1, False), (1, "loop"), (2, False), pytest.param(2, True, marks=pytest.mark.slow)]


@pytest.mark.promise(45)
@pytest.mark.parametrize(("count", "jit"), CASES)
def test_keras_random_without_a_seed_is_saved_and_differs_per_replica(
    count, jit, replicas, tmp_path
):
    strategy = replicas(count)
    whole = _drawing(strategy, jit=jit)
    whole.train(DATA, 3)
    third = _drawn(whole)
    assert len({str(one) for one in third}) == count
    first = _drawing(strategy, tmp_path, jit=jit)
    first.train(DATA, 2)
    second = _drawn(first)
    assert second != third
    first.save_checkpoint()
    keras.random.normal([3])  # what others draw between two runs doesn't matter
    resumed = _drawing(strategy, tmp_path, jit=jit, seed=9)
    resumed.train(DATA, 3)
    assert _drawn(resumed) == third


@pytest.mark.promise(45)
def test_the_first_replica_draws_what_one_replica_draws(replicas, tmp_path):
    found = []
    mirrored = tf.distribute.MirroredStrategy(["CPU:0"])  # one replica, in a thread of its own
    for index, strategy in enumerate([replicas(1), replicas(2), mirrored]):
        trainer = _drawing(strategy, tmp_path / str(index), jit=False)
        trainer.train(DATA, 2)
        found.append([_drawn(trainer)[0]])
        trainer.save_checkpoint()
        trainer.train(DATA, 3)
        found[-1].append(_drawn(trainer)[0])
    assert found[0] == found[1] == found[2]
    resumed = _drawing(replicas(2), tmp_path / "0", jit=False, seed=9)  # saved on one
    resumed.train(DATA, 3)
    assert _drawn(resumed)[0] == found[0][1]


@pytest.mark.promise(45)
@pytest.mark.upstream
def test_upstream_makes_a_generator_in_the_thread_of_a_replica(replicas):
    strategy = replicas(2)
    draw = tf.function(lambda: strategy.run(lambda: keras.random.normal([])))
    with pytest.raises(ValueError, match="only supports singleton tf.Variables"):
        draw()
