"""Everything that a step may change is saved under a name, and restored only where it fits."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.toys import Line, make_step, rows
from tfloss import Trainer, export, load_weights, metric
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
        warn_if_unrestored(None, Line())
        warn_if_unrestored(directory, Line())
    state()[1].save(directory, 1, {})
    with pytest.warns(UserWarning, match="neither trained nor restored"):
        warn_if_unrestored(directory, Line())


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


class Standardised(keras.Model):
    """Predicts the standardised input, and learns nothing."""

    def __init__(self):
        super().__init__(name="net")
        self.normal = keras.layers.Normalization(name="normal")
        self.w = self.add_weight(name="w", shape=(), initializer="ones")

    def call(self, batch, training=False):
        y = self.normal(batch["x"])
        return {"loss": 0.0 * self.w + tf.reduce_mean(y)} if training else {"y": y}


@pytest.mark.promise(43)
@pytest.mark.parametrize("number", [1, 2])
def test_a_normalization_computes_with_what_was_restored(tmp_path, replicas, number):
    x = np.array([[1.0], [3.0]], np.float32)  # mean 2, variance 1: standardised -1 and 1
    data = tf.data.Dataset.from_tensor_slices({"x": x}).batch(2, drop_remainder=True)
    strategy = replicas(number)

    def trainer(workdir=tmp_path):
        with strategy.scope():
            made = Standardised(), keras.optimizers.SGD(0.0)
            made[0].normal.build((None, 1))
        return Trainer(*made, strategy=strategy, workdir=workdir, default_hooks=False, jit=False)

    largest = {
        "mse": metric(
            keras.metrics.MeanSquaredError(),
            lambda batch, y: (tf.constant([[-1.0], [1.0]]), y["y"]),
        )
    }
    first = trainer()
    with strategy.scope():
        first.model.normal.adapt(x)
    first.train(data.repeat(), 1)
    assert first.evaluate(data, largest) == {"mse": pytest.approx(0.0, abs=1e-6)}
    path = first.save_checkpoint()

    restored = trainer()
    restored.restore(data)
    assert restored.evaluate(data, largest) == {"mse": pytest.approx(0.0, abs=1e-6)}
    resumed = trainer()
    assert resumed.train(data.repeat(), 2).losses["loss"] == pytest.approx(0.0, abs=1e-6)

    loaded = trainer(None)
    assert loaded.evaluate(data, largest)["mse"] == pytest.approx(4.0)  # x - x/|x|: 2 and 2
    load_weights(loaded.model, path)  # after the forward was traced
    assert loaded.evaluate(data, largest) == {"mse": pytest.approx(0.0, abs=1e-6)}
    exported = export(loaded.model, tmp_path / "export", {"x": tf.TensorSpec([None, 1])})
    served = tf.saved_model.load(str(exported)).signatures["serving_default"]
    np.testing.assert_allclose(served(x=tf.constant(x))["y"], [[-1.0], [1.0]], atol=1e-6)
