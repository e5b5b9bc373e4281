"""The gradients of a step: the sum over its micro-batches, on each replica."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.step.masked_net import X, assert_same, data, trained
from tests.toys import Line, run
from tfloss import summary
from tfloss.data.batches import MicroBatches
from tfloss.forward.context import current_step
from tfloss.step.backward import Gradients
from tfloss.step.gradients import accumulate
from tfloss.step.normalisers import NormaliserSums

TRACE = types.SimpleNamespace(spec=types.SimpleNamespace(summaries=["x"]))


class _Backward:
    """Returns its arguments as gradients, and counts how often it is traced."""

    def __init__(self):
        self.traces = 0

    def __call__(self, batch, step, weight, scale, normalisers):
        self.traces += 1
        vector = tf.stack([weight, tf.cast(step, tf.float32)])
        dense = weight * batch["x"] * (1.0 if scale is None else scale)
        sparse = tf.IndexedSlices(dense[:, None], batch["row"], tf.constant([4, 1]))
        given = [] if normalisers is None else [normalisers.sums[0] * weight]
        gradients = Gradients([[dense, sparse], given], [[batch["x"]], []], [[2.0 * dense]])
        return (vector, gradients, {"x": batch["x"]}), TRACE


def _accumulated(strategy, weights, *, scale=None, normalisers=None):
    """Runs the micro-batches [1, 2] and [3, 4] on replica 0, [5, 6] and [7, 8] on replica 1."""
    backward = _Backward()

    def batch(first):
        def replica(context):
            start = first + 4.0 * context.replica_id_in_sync_group
            row = tf.constant([0, int(first)], tf.int64)
            return {"x": tf.constant([start, start + 1.0]), "row": row}

        return strategy.experimental_distribute_values_from_function(replica)

    @tf.function(autograph=False)
    def run(*batches):
        found = accumulate(
            strategy,
            backward,
            MicroBatches(batches),
            weights,
            step=tf.constant(7, tf.int64),
            scale=None if scale is None else tf.constant(scale),
            normalisers=normalisers,
        )
        assert found.trace is TRACE
        return found.vector, found.gradients, found.summaries

    vector, gradients, summaries = run(*[batch(1.0 + 2.0 * i) for i in range(len(weights))])
    local = strategy.experimental_local_results
    gradients, overwriting, by_loss = gradients
    for double, one in zip(local(by_loss[0][0]), local(gradients[0][0]), strict=True):
        np.testing.assert_array_equal(double, 2.0 * one)
    assert local(overwriting[0][0])[0].numpy().tolist() == [
        2.0 * len(weights) - 1,
        2 * len(weights),
    ]
    gradients = [[local(one) for one in group] for group in gradients]
    return [one.numpy().tolist() for one in local(vector)], gradients, summaries, backward


@pytest.mark.parametrize("count", [1, 2])
def test_each_replica_sums_its_own_micro_batches(count, replicas):
    vector, (group, given), summaries, _ = _accumulated(replicas(count), [0.25, 0.5])

    # 1/4 [1, 2] + 1/2 [3, 4], and 1/4 [5, 6] + 1/2 [7, 8]
    dense = [one.numpy().tolist() for one in group[0]]
    assert dense == [[1.75, 2.5], [4.75, 5.5]][:count]
    assert vector == [[0.75, 14.0]] * count
    assert given == []
    # The micro-batches one after the other, and in each of them the replicas.
    order = {1: [[1, 2], [3, 4]], 2: [[1, 2], [5, 6], [3, 4], [7, 8]]}[count]
    assert [one.numpy().tolist() for one in summaries["x"]] == order


def test_the_rows_of_sparse_gradients_are_concatenated(replicas):
    _, (group, _), _, _ = _accumulated(replicas(1), [0.25, 0.5])

    (sparse,) = group[1]
    assert sparse.indices.numpy().tolist() == [0, 1, 0, 3]
    assert sparse.values.numpy().ravel().tolist() == [0.25, 0.5, 1.5, 2.0]
    assert tf.convert_to_tensor(sparse).numpy().ravel().tolist() == [1.75, 0.5, 0.0, 2.0]


def test_one_micro_batch_is_returned_unchanged(replicas):
    vector, (group, _), summaries, _ = _accumulated(replicas(1), [1.0])

    assert vector == [[1.0, 7.0]]
    assert group[0][0].numpy().tolist() == [1.0, 2.0]
    assert len(summaries["x"]) == 1


def test_scale_and_normalisers_reach_every_micro_batch(replicas):
    sums = NormaliserSums(tf.constant([[0.0, 8.0]]), [False])
    _, (group, given), _, _ = _accumulated(replicas(1), [0.25, 0.5], scale=1024.0, normalisers=sums)

    assert group[0][0].numpy().tolist() == [1024 * 1.75, 1024 * 2.5]
    assert given[0][0].numpy().tolist() == [0.0, 6.0]  # 8/4 + 8/2


def test_micro_batches_of_one_shape_and_weight_are_traced_once(replicas):
    *_, backward = _accumulated(replicas(1), [0.25, 0.25, 0.25, 0.25])

    assert backward.traces == 1


@pytest.mark.promise(14)
@pytest.mark.parametrize("mode", ["graph", "step"])
def test_micro_batches_of_two_sizes_are_one_batch_of_all_examples(mode):
    dataset = tf.data.Dataset.from_tensor_slices({"x": [1.0, 2.0, 3.0, 10.0]}).batch(3).repeat()
    train_step, found, _ = run(Line, dataset, accumulate=2, mode=mode)

    # The mean is 16/4. The mean of the micro-batches' means would be (2 + 10)/2.
    assert found["losses/mean"] == pytest.approx(4.0)
    assert train_step.model.w.numpy() == pytest.approx(1.0 - 0.1 * 4.0)


@pytest.mark.promise(14)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("mode", ["graph", "step"])
def test_four_batches_of_8_are_one_of_32_with_everything_in_it(count, mode, replicas):
    def optimizer():
        schedule = keras.optimizers.schedules.PiecewiseConstantDecay([5, 12], [0.1, 0.05, 0.01])
        return keras.optimizers.Adam(schedule)

    options = {"optimizer": optimizer, "clip_norm": 0.5, "ema": 0.9}
    whole = trained(32, **options)
    parts = trained(8, accumulate=4, strategy=replicas(count), mode=mode, **options)
    assert_same(whole, parts)
    assert parts[2].optimizers["optimizer"].iterations.numpy() == 20
    assert float(parts[2].optimizers["optimizer"].learning_rate.numpy()) == pytest.approx(0.01)


def test_the_step_is_the_same_for_all_micro_batches_and_summaries_are_of_all():
    def report(m, b, y):
        summary.scalar("step", tf.cast(current_step(), tf.float32))
        summary.scalar("number", tf.reduce_sum(b["x"]), reduce="sum")
        summary.histogram("x", b["x"])
        summary.image("first", tf.reshape(b["x"], [-1, 1, 1, 1]) / 32.0)
        return {"mean": tf.reduce_mean(y)}

    _, found, block = run(lambda: Line(report), data(8), steps=3, recording=True, accumulate=4)
    assert found["step"] == 2.0
    assert found["number"] == float(X.sum())
    histogram, image = block.summaries
    assert sorted(histogram.value.ravel().tolist()) == X.tolist()
    assert image.value.ravel() == pytest.approx(X[: len(image.value)] / 32)  # the first batch's


def test_an_embedding_accumulates():
    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="model")
            self.table = keras.layers.Embedding(4, 1, embeddings_initializer="ones", name="table")

        def call(self, batch, training=False):
            return {"mean": tf.reduce_mean(self.table(batch["i"]))}

    dataset = tf.data.Dataset.from_tensor_slices({"i": [0, 1, 1, 3]}).batch(2).repeat()
    train_step, _, _ = run(
        Model, dataset, optimizer=lambda: keras.optimizers.SGD(1.0), accumulate=2
    )
    weights = train_step.model.table.embeddings.numpy().ravel()
    assert weights.tolist() == pytest.approx([0.75, 0.5, 1.0, 0.75])
