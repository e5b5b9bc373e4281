"""Everything that a step may change is saved under a name, and restored only where it fits."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.toys import Line, make_step, rows
from tfloss.checkpoint import CheckpointDirectory
from tfloss.errors import CheckpointError
from tfloss.trainer.checkpointed_variables import CheckpointedVariables, warn_if_unrestored

DATA = rows(np.ones(8), 4)


class Noisy(Line):
    """A line with a seed generator."""

    def __init__(self):
        super().__init__(name="noisy")
        self.seeds = keras.random.SeedGenerator(3)


def state(optimizer=lambda: keras.optimizers.Adam(0.1), model=Noisy, **options):
    step, _ = make_step(model, DATA, optimizer=optimizer, **options)
    return step, CheckpointedVariables(step)


def test_the_names_of_all_variables():
    _, found = state(ema=0.9, skip_nonfinite=True)
    names = set(found.variables())
    assert {"step", "model/noisy/w", "skipped", "ema/noisy/w"} <= names
    assert {"optimizer/iteration", "optimizer/learning_rate"} <= names
    assert {"optimizer/noisy/w/momentum", "optimizer/noisy/w/velocity"} <= names
    assert any("seed" in name for name in names)


def test_what_is_saved_is_restored_and_the_step_with_it(tmp_path):
    directory = CheckpointDirectory(tmp_path)
    step, saved = state()
    step.counter.assign(5)
    step.model.w.assign(7.0)
    path = saved.save(directory, 5, {"Mine": {"n": 1}})
    other, restored = state()
    assert restored.restore(directory, path) == (5, {"Mine": {"n": 1}})
    assert float(other.model.w.numpy()) == 7.0
    assert int(other.counter.numpy()) == 5


def test_the_same_seed_gives_the_same_random_states():
    (_, one), (_, other) = state(), state()
    for each, seed in [(one, 4), (other, 4)]:
        each.seed(seed)
    key = next(name for name in one.variables() if "seed" in name)
    same = [np.asarray(each.variables()[key].numpy()).tolist() for each in (one, other)]
    assert same[0] == same[1]
    other.seed(5)
    assert np.asarray(other.variables()[key].numpy()).tolist() != same[0]


def test_another_optimizer_is_refused_before_anything_changes(tmp_path):
    directory = CheckpointDirectory(tmp_path)
    path = state()[1].save(directory, 1, {})
    step, other = state(optimizer=lambda: keras.optimizers.SGD(0.1, momentum=0.9))
    step.model.w.assign(3.0)
    with pytest.raises(CheckpointError, match="'optimizer' keeps .*velocity.*this one \\(SGD\\)"):
        other.restore(directory, path)
    assert float(step.model.w.numpy()) == 3.0


def test_a_constant_rate_is_configuration(tmp_path):
    directory = CheckpointDirectory(tmp_path)
    path = state(optimizer=lambda: keras.optimizers.Adam(0.1))[1].save(directory, 1, {})
    step, other = state(optimizer=lambda: keras.optimizers.Adam(0.01))
    with pytest.warns(UserWarning, match="was 0.1 in .* and is 0.01 now"):
        other.restore(directory, path)
    rate = step.optimizers["optimizer"].learning_rate
    assert float(tf.convert_to_tensor(rate)) == pytest.approx(0.01)


def test_states_of_hooks_that_are_no_mapping_are_refused(tmp_path):
    directory = CheckpointDirectory(tmp_path)
    path = state()[1].save(directory, 1, {"Mine": 3})
    with pytest.raises(CheckpointError, match="The hooks' states in .* are corrupt"):
        state()[1].restore(directory, path)


def test_evaluating_beside_a_checkpoint_that_was_not_restored_warns(tmp_path):
    directory = CheckpointDirectory(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_unrestored(None)
        warn_if_unrestored(directory)
    state()[1].save(directory, 1, {})
    with pytest.warns(UserWarning, match="neither trained nor restored"):
        warn_if_unrestored(directory)


def test_statistics_of_replicas_are_replaced_by_their_mean(replicas):
    strategy = replicas(2)

    class Norm(Line):
        def __init__(self):
            super().__init__(name="normed")
            self.seen = self.add_weight(name="seen", shape=(), trainable=False)

    step, _ = make_step(Norm, DATA, strategy)

    def assign():
        context = tf.distribute.get_replica_context()
        step.model.seen.value.assign(tf.cast(context.replica_id_in_sync_group, tf.float32) * 4.0)

    strategy.run(assign)
    CheckpointedVariables(step).sync_replicas()
    local = strategy.experimental_local_results(step.model.seen.value)
    assert [float(one) for one in local] == [2.0, 2.0]
