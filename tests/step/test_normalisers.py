"""The global sums of every `global_mean`, found by a pass that changes nothing."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.toys import Line, make_step, rows, run
from tfloss import summary
from tfloss.data.batches import MicroBatches
from tfloss.engine.engine import Engine
from tfloss.errors import LossError
from tfloss.forward.global_batch import global_mean
from tfloss.step.normalisers import NormaliserPass

X = [1.0, 2.0, 3.0, 4.0]
VALID = [[1.0, 0.0, 0.0, 2.0], [0.0, 1.0, 1.0, 1.0]]


def _sums(strategy, make_model, many=1, jit=False):
    """The sums over micro-batches with the same x. Weights are `VALID`, by micro-batch.

    Returns:
      The sums as lists, what was learned about them, and the model. None if there are no sums.
    """
    with strategy.scope():
        model = make_model()

    def batch(index):
        def part(context):
            each = len(X) // context.num_replicas_in_sync
            start = each * context.replica_id_in_sync_group
            mine = slice(start, start + each)
            return {"x": tf.constant(X[mine]), "valid": tf.constant(VALID[index][mine])}

        return strategy.experimental_distribute_values_from_function(part)

    learned = []

    @tf.function(autograph=False)
    def run(*batches):
        counting = NormaliserPass(
            model, lambda b: model(b, training=True), model.trainable_variables, jit
        )
        found = counting.global_sums(strategy, MicroBatches(batches), tf.constant(0, tf.int64))
        if found is None:
            return None
        learned.extend(found.learned)
        return found.sums

    sums = run(*[batch(index) for index in range(many)])
    return None if sums is None else (sums.numpy().tolist(), learned, model)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("many", "valid"), [(1, 3.0), (2, 6.0)])
def test_weights_are_summed_over_replicas_and_micro_batches(many, valid, count, jit, replicas):
    def report(model, batch, y):
        return {"masked": global_mean(y, batch["valid"]), "all": global_mean(y)}

    sums, learned, _ = _sums(replicas(count), lambda: Line(report), many, jit)

    # In the order of the calls. The sum of the values isn't needed, since the weights are labels.
    assert sums == [[0.0, valid], [0.0, 4.0 * many]]
    assert learned == [False, False]


@pytest.mark.parametrize("count", [1, 2])
def test_weights_that_depend_on_a_trained_variable_need_the_sum_of_the_values_too(count, replicas):
    def report(model, batch, y):
        return {"mean": global_mean(10.0 * batch["x"], model.w * batch["valid"])}

    sums, learned, _ = _sums(replicas(count), lambda: Line(report), 2)

    # 10 (1 1 + 4 2) + 10 (2 + 3 + 4), and 3 + 3.
    assert sums == [[180.0, 6.0]]
    assert learned == [True]


@pytest.mark.parametrize("many", [1, 2])
def test_without_a_global_mean_there_are_no_sums(many, replicas):
    assert _sums(replicas(1), Line, many) is None


@pytest.mark.parametrize("jit", [False, True])
def test_the_pass_changes_no_statistic_counter_or_random_state(jit, replicas):
    class Model(Line):
        def __init__(self):
            super().__init__()
            self.norm = keras.layers.BatchNormalization()
            self.norm.build([None, 1])
            self.drop = keras.layers.Dropout(0.5, seed=1)
            options = {"shape": (), "initializer": "zeros", "trainable": False}
            self.count = self.add_weight(name="count", **options)

        def call(self, batch, training=False):
            self.count.assign_add(1.0)
            x = self.norm(batch["x"][:, None], training=training)
            kept = tf.cast(self.drop(tf.ones_like(x), training=training) > 0, tf.float32)
            return {"mean": global_mean(self.w * x, kept)}

    _, _, model = _sums(replicas(1), Model, 2, jit)

    assert model.norm.moving_mean.numpy().tolist() == [0.0]
    assert model.count.numpy() == 0.0
    assert model.drop.seed_generator.state.numpy().tolist() == [1, 0]


def test_a_global_mean_inside_a_nested_function_is_refused(replicas):
    def report(model, batch, y):
        return {"mean": tf.function(global_mean, autograph=False)(y, batch["valid"])}

    with pytest.raises(LossError, match="global_mean is called inside .* a nested tf.function"):
        _sums(replicas(1), lambda: Line(report), 2)


def test_dropout_differs_between_micro_batches_and_counts_on():
    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="model")
            self.w = self.add_weight(name="w", shape=(), initializer="ones")
            self.drop = keras.layers.Dropout(0.5, seed=1)

        def call(self, batch, training=False):
            x = self.drop(tf.ones([8]), training=training)
            summary.histogram("mask", x)
            # The number of survivors normalises: it must be counted with the very same masks.
            return {"mean": global_mean(self.w * batch["x"], tf.cast(x > 0, tf.float32))}

    values = np.ones(32, np.float32)
    dataset = tf.data.Dataset.from_tensor_slices({"x": values}).batch(8).repeat()
    train_step, found, block = run(Model, dataset, recording=True, accumulate=4)
    masks = block.summaries[0].value.reshape(4, 8)
    assert len({tuple(mask) for mask in masks}) == 4
    assert found["losses/mean"] == pytest.approx(1.0)
    assert train_step.model.w.numpy() == pytest.approx(0.9)


def test_a_variable_that_the_forward_assigns_itself_is_refused_when_accumulating():
    class Model(Line):
        def __init__(self):
            super().__init__()
            self.seen = tf.Variable(0.0, trainable=False)

        def call(self, batch, training=False):
            self.seen.assign_add(1.0)
            return {"mean": tf.reduce_mean(self.w * batch["x"])}

    train_step, iterator = make_step(Model, rows(np.arange(1.0, 33.0), 8), accumulate=2)
    with pytest.raises(LossError, match=r"assigns a tf.Variable.*add_weight"):
        Engine(train_step).run(iterator, 1)
