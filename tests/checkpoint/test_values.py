"""Values that differ between replicas: what is read, and what is assigned."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.checkpoint.nets import built, everything, scramble
from tfloss.checkpoint import CheckpointDirectory, assign, named_variables, read, sync_replicas


def _batch_norm(strategy):
    keras.utils.clear_session(free_memory=False)
    with strategy.scope():
        model = keras.Sequential([keras.layers.BatchNormalization(momentum=0.5, name="bn")])
        model.build((None, 1))
    return model


def _train_forward(strategy, model):
    feed = strategy.experimental_distribute_values_from_function(
        lambda c: tf.fill([4, 1], [1.0, 5.0][c.replica_id_in_sync_group])
    )
    tf.function(lambda x: strategy.run(lambda x: model(x, training=True), (x,)))(feed)


def _local(strategy, variable):
    value = variable.value if isinstance(variable, keras.Variable) else variable
    return [v.numpy().tolist() for v in strategy.experimental_local_results(value)]


@pytest.mark.promise(4)
def test_statistics_are_the_mean_over_replicas(replicas, tmp_path):
    strategy = replicas(2)
    model = _batch_norm(strategy)
    _train_forward(strategy, model)
    mean = model.layers[0].moving_mean
    assert _local(strategy, mean) == [[0.5], [2.5]]
    path = CheckpointDirectory(tmp_path).save(1, named_variables(model))
    assert _local(strategy, mean) == [[0.5], [2.5]]  # saving changes nothing
    single = _batch_norm(replicas(1))
    CheckpointDirectory(tmp_path).restore(path, named_variables(single))
    assert single.layers[0].moving_mean.numpy().tolist() == [1.5]
    sync_replicas(model)
    assert _local(strategy, mean) == [[1.5], [1.5]]


@pytest.mark.promise(4)
@pytest.mark.upstream
def test_upstream_keeps_the_statistics_of_one_replica(replicas, tmp_path):
    strategy = replicas(2)
    model = _batch_norm(strategy)
    _train_forward(strategy, model)
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / "c"))
    single = _batch_norm(replicas(1))
    tf.train.Checkpoint(model=single).read(path).expect_partial()
    assert single.layers[0].moving_mean.numpy().tolist() == [0.5]


def test_one_replica_restores_into_several(replicas, tmp_path):
    single = _batch_norm(replicas(1))
    single.layers[0].moving_mean.assign([3.0])
    path = CheckpointDirectory(tmp_path).save(1, named_variables(single))
    strategy = replicas(2)
    model = _batch_norm(strategy)
    CheckpointDirectory(tmp_path).restore(path, named_variables(model))
    assert _local(strategy, model.layers[0].moving_mean) == [[3.0], [3.0]]


@pytest.mark.parametrize("counts", [(1, 2), (2, 1), (2, 4)])
def test_all_state_moves_between_numbers_of_replicas(counts, replicas, tmp_path):
    saved, restored = (everything(*built("list", replicas(count))) for count in counts)
    scramble(saved)
    path = CheckpointDirectory(tmp_path).save(1, saved)
    CheckpointDirectory(tmp_path).restore(path, restored)
    strategy = replicas(counts[1])
    for name, variable in restored.items():
        for value in _local(strategy, variable):
            np.testing.assert_array_equal(value, read(saved[name]), err_msg=name)


def _per_replica(strategy, dtype, aggregation, values):
    with strategy.scope():
        variable = tf.Variable(
            tf.zeros([], dtype),
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=aggregation,
        )
    for one, value in zip(strategy.experimental_local_results(variable), values, strict=True):
        one.assign(value)
    return variable


@pytest.mark.parametrize("dtype", [tf.int64, tf.float32])
def test_sums_come_back_exactly(dtype, replicas):
    strategy = replicas(3)
    variable = _per_replica(strategy, dtype, tf.VariableAggregation.SUM, [2, 3, 2])
    assert read(variable) == 7
    assign(variable, np.asarray(7, dtype.as_numpy_dtype))
    assert read(variable) == 7  # TensorFlow's own assign gives each of them 7 // 3
    assert _local(strategy, variable) == [7, 0, 0]


def test_other_aggregations(replicas):
    strategy, how = replicas(2), tf.VariableAggregation
    assert read(_per_replica(strategy, tf.float32, how.MEAN, [1, 4])) == 2.5
    assert read(_per_replica(strategy, tf.float32, how.ONLY_FIRST_REPLICA, [1, 4])) == 1
    assert read(_per_replica(strategy, tf.int32, how.NONE, [1, 4])) == 1
    half = read(_per_replica(strategy, tf.bfloat16, how.MEAN, [1, 4]))
    assert half == 2.5 and tf.as_dtype(half.dtype) == tf.bfloat16


def test_a_metric_continues_after_restoring(replicas, tmp_path):
    strategy = replicas(2)

    def make():
        with strategy.scope():
            metric = keras.metrics.Mean()
        return metric, {v.path: v for v in metric.variables}

    def update(metric):
        @tf.function
        def step():
            strategy.run(metric.update_state, ([1.0, 4.0, 4.0],))

        step()

    first, variables = make()
    update(first)
    path = CheckpointDirectory(tmp_path).save(1, variables)
    second, variables = make()
    CheckpointDirectory(tmp_path).restore(path, variables)
    assert second.result() == 3.0 and [read(v) for v in variables.values()] == [18.0, 6.0]
    update(second)
    assert [read(v) for v in variables.values()] == [36.0, 12.0]


def test_a_trainer_continues_from_the_state_that_it_saved(replicas, tmp_path):
    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="m")
            self.bn = keras.layers.BatchNormalization(momentum=0.5, name="bn")

        def call(self, batch, training=False):
            return tf.reduce_mean(self.bn(batch["x"], training=training))

    def build(strategy):
        keras.utils.clear_session(free_memory=False)
        with strategy.scope():
            model, optimizer = Model(), keras.optimizers.SGD(0.1)
        return tfloss.Trainer(
            model,
            optimizer,
            strategy=strategy,
            workdir=tmp_path,
            hooks=[tfloss.hooks.SaveCheckpoint(tfloss.Every(steps=1), keep_last=None)],
            default_hooks=False,
        )

    data = tf.data.Dataset.from_tensors({"x": [[1.0], [1.0], [5.0], [5.0]]}).repeat()
    straight = build(replicas(2))
    straight.train(data, steps=3)
    local = replicas(2).experimental_local_results(straight.model.bn.moving_mean.value)
    assert local[0].numpy() == local[1].numpy() == [2.625]  # 3 (1 - 1/8), the mean of both
    CheckpointDirectory(tmp_path / "checkpoints").delete(3)
    resumed = build(replicas(2))
    resumed.train(data, steps=3)
    for name, variable in straight.state.variables().items():
        np.testing.assert_array_equal(read(variable), read(resumed.state.variables()[name]))
