"""What TensorFlow and Keras do by themselves under several replicas, and tfloss doesn't.

When one of these fails, upstream has changed: then its line in docs/correctness.md must too.
"""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfloss import _upstream

pytestmark = pytest.mark.upstream


def test_a_scope_can_be_left_for_a_single_replica(replicas):
    with replicas(2).scope():
        weight = keras.Variable([1.0, 2.0])
        assert tf.distribute.get_replica_context() is None
        with pytest.raises(ValueError, match="handle is not available"):
            weight.handle  # noqa: B018
        with _upstream.as_single_replica():
            context = tf.distribute.get_replica_context()
            assert context.num_replicas_in_sync == 1 and weight.handle is not None
            weight.assign([3.0, 4.0])
        assert tf.distribute.get_replica_context() is None
    for one in weight.value.values:
        assert one.numpy().tolist() == [3.0, 4.0]


def test_what_replicas_reduce_and_gather_is_seen(replicas):
    strategy, seen = replicas(2), []

    def replica():
        context = tf.distribute.get_replica_context()
        with _upstream.intercept_reductions(seen.append):
            one = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.constant(1.0))
            return one, context.all_gather(tf.constant([2.0]), 0)

    one, all_ = tf.function(lambda: strategy.run(replica))()
    assert [x.numpy().tolist() for x in strategy.experimental_local_results(one)] == [2.0, 2.0]
    assert all_.values[0].numpy().tolist() == [2.0, 2.0]
    assert len(seen) == 4 and all(tf.is_tensor(x) for x in seen)


@pytest.mark.promise(54)
def test_a_variable_created_in_a_trace_cannot_be_initialized(replicas):
    class Model(keras.Model):
        def build(self, shape):
            self.w = self.add_weight(shape=(1, 1), name="w")

        def call(self, x):
            return x @ self.w

    with replicas(2).scope():
        model = Model()
        with pytest.raises(Exception, match="Unable to lift tensor"):
            tf.function(model).get_concrete_function(tf.TensorSpec([4, 1]))


def per_replica(strategy, values):
    """Each replica its own value."""

    def value(context):
        return tf.constant(values[context.replica_id_in_sync_group])

    return strategy.experimental_distribute_values_from_function(value)


def applied(strategy, optimizer, gradients, steps=1):
    """A weight that was 1, after the replicas' gradients were applied."""
    with strategy.scope():
        weight = keras.Variable(1.0, name="w")
        optimizer = optimizer()
        optimizer.build([weight])

    @tf.function
    def step(gradient):
        strategy.run(lambda g: optimizer.apply([g], [weight]), args=(gradient,))

    for _ in range(steps):
        step(per_replica(strategy, gradients))
    return weight, optimizer


@pytest.mark.promise(3)
def test_a_loss_scale_looks_at_the_first_replica_only(replicas):
    def optimizer():
        inner = keras.optimizers.SGD(0.1)
        return keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0)

    weight, _ = applied(replicas(2), optimizer, [np.float32(np.inf), np.float32(1.0)])
    assert weight.numpy() == 1.0  # left out, as it should
    weight, _ = applied(replicas(2), optimizer, [np.float32(1.0), np.float32(np.inf)])
    assert weight.numpy() == -np.inf


@pytest.mark.promise(9)
def test_an_average_over_uneven_replicas_is_not_that_of_the_examples(replicas):
    """`tf.nn.compute_average_loss` on 1, 2, 3 as (1, 2) and (3): 2.25, where the mean is 2."""
    strategy = replicas(2)
    parts = [np.array([1.0, 2.0], np.float32), np.array([3.0], np.float32)]

    def value(context):
        return tf.ragged.constant([parts[context.replica_id_in_sync_group]]).to_tensor()[0]

    batch = strategy.experimental_distribute_values_from_function(value)
    each = strategy.run(tf.nn.compute_average_loss, args=(batch,))
    assert float(strategy.reduce("SUM", each, axis=None)) == pytest.approx(2.25)


@pytest.mark.promise(9)
def test_an_empty_batch_makes_statistics_nan():
    norm = keras.layers.BatchNormalization()
    norm(tf.ones([2, 3]))
    norm(tf.zeros([0, 3]), training=True)
    assert np.isnan(norm.moving_mean.numpy()).all()


@pytest.mark.promise(10)
def test_a_loss_added_in_a_rematerialised_block_has_no_gradient():
    class Layer(keras.Layer):
        def __init__(self):
            super().__init__()
            self.w = self.add_weight(shape=(), initializer="ones")

        def call(self, x):
            def block(x):
                y = x * self.w
                self.add_loss(tf.reduce_sum(y))
                return y

            return tf.recompute_grad(block)(x)

    layer = Layer()
    with tf.GradientTape() as tape:
        layer(tf.ones([2]))
        (loss,) = layer.losses
    assert float(loss) == 2.0
    assert tape.gradient(loss, layer.w.value) is None


@pytest.mark.promise(14)
def test_accumulation_runs_the_schedule_at_the_rate_of_micro_batches():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [1.0, 0.0])
    weight = keras.Variable(1.0)
    optimizer = keras.optimizers.SGD(schedule, gradient_accumulation_steps=2)
    optimizer.build([weight])
    for _ in range(4):
        optimizer.apply([tf.constant(0.25)], [weight])
    assert int(optimizer.iterations.numpy()) == 2
    # The second update should still have the rate 1: steps 0 and 1 do. It had 0.
    assert weight.numpy() == pytest.approx(0.75)


@pytest.mark.promise(14)
def test_accumulation_moves_averages_between_updates():
    weight = keras.Variable(1.0)
    optimizer = keras.optimizers.SGD(
        1.0, use_ema=True, ema_momentum=0.5, gradient_accumulation_steps=4
    )
    optimizer.build([weight])
    for _ in range(8):
        optimizer.apply([tf.constant(-1.0)], [weight])
    after_update = float(optimizer._model_variables_moving_average[0].numpy())
    optimizer.apply([tf.constant(-1.0)], [weight])  # the first of the next four: no update
    assert float(optimizer._model_variables_moving_average[0].numpy()) != after_update


@pytest.mark.promise(15)
def test_accumulation_crashes_under_several_replicas(replicas):
    with pytest.raises(RuntimeError, match="merge_call"):
        applied(
            replicas(2),
            lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=2),
            [np.float32(1.0), np.float32(2.0)],
        )


@pytest.mark.promise(20)
def test_an_optimizer_built_inside_the_step_fails_obscurely():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = keras.Sequential([keras.layers.Dense(1)])
        model.build((None, 1))
        optimizer = keras.optimizers.Adam()

    def replica(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(x, training=True))
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)

    @tf.function
    def step(x):
        strategy.run(replica, args=(x,))

    with pytest.raises(tf.errors.InvalidArgumentError, match="Placeholder"):
        step(tf.ones([2, 1]))


@pytest.mark.promise(25)
def test_a_mean_over_nothing_is_nan_and_so_is_its_gradient():
    weight = tf.Variable(1.0)
    with tf.GradientTape() as tape:
        values = weight * tf.constant([1.0, 2.0])
        loss = tf.reduce_mean(tf.boolean_mask(values, [False, False]))
    assert np.isnan(float(loss))
    with tf.GradientTape() as tape:
        mask = tf.zeros([2])
        loss = tf.reduce_sum(weight * tf.constant([1.0, 2.0]) * mask) / tf.reduce_sum(mask)
    assert np.isnan(float(tape.gradient(loss, weight)))


def test_without_partial_batches_data_end_on_each_worker_by_themselves(replicas):
    """Three examples on two replicas: the second step has one for the first replica only."""
    strategy = replicas(2)

    def steps(make):
        data = strategy.distribute_datasets_from_function(make)
        batches = iter(data)
        sizes = []
        with contextlib.suppress(tf.errors.OutOfRangeError, StopIteration):
            while True:
                parts = strategy.experimental_local_results(next(batches))
                sizes.append([int(tf.size(one)) for one in parts])
        return sizes

    def make(_):
        # The shape is not static, so TensorFlow looks for replicas without data.
        return tf.data.Dataset.range(3).batch(1)

    assert steps(make) == [[1, 1], [1, 0]]
    with _upstream.without_partial_batches(strategy):
        assert steps(make) == [[1, 1]]
    assert steps(make) == [[1, 1], [1, 0]]
