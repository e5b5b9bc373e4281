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
