"""The example weights of a step: the fraction of its examples on each replica."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.step.masked_net import VALID, Net, X, assert_same
from tests.toys import Line, make_step, run
from tfloss.data.batches import MicroBatches
from tfloss.engine.engine import Engine
from tfloss.step.example_weights import example_weights


def _weights(strategy, *numbers):
    """The weights of micro-batches of unknown sizes. Each of `numbers` is that of all replicas."""
    sizes = [
        strategy.experimental_distribute_values_from_function(
            lambda context, each=each: tf.constant(each[context.replica_id_in_sync_group])
        )
        for each in numbers
    ]

    @tf.function(autograph=False)
    def found(sizes):
        def batch(size):
            return {"x": tf.fill([size], 1.0), "temperature": tf.constant(1.0)}

        return example_weights(
            strategy, MicroBatches(strategy.run(batch, args=(size,)) for size in sizes)
        )

    local = strategy.experimental_local_results
    return [[float(one) for one in local(weight)] for weight in found(sizes)]


def test_one_batch_on_one_replica_has_weight_one(replicas):
    for batch in ({"x": tf.zeros([3])}, {"x": tf.zeros([0])}, {"seed": tf.constant(1)}):
        assert example_weights(replicas(1), MicroBatches([batch])) == [1.0]


@pytest.mark.parametrize(("count", "weights"), [(1, [3 / 4, 1 / 4]), (2, [3 / 8, 1 / 8])])
def test_weights_of_static_sizes_are_floats(count, weights, replicas):
    found = []

    @tf.function(autograph=False)
    def trace():
        batches = MicroBatches([{"x": tf.zeros([3, 2])}, {"x": tf.zeros([1, 2])}])
        found.extend(example_weights(replicas(count), batches))

    trace()
    assert found == weights
    assert all(isinstance(one, float) for one in found)


@pytest.mark.parametrize("count", [1, 2])
def test_weights_are_equal_where_examples_can_not_be_counted(count, replicas):
    batch = {"seed": tf.constant(1)}
    assert example_weights(replicas(count), MicroBatches([batch] * 2)) == [1 / (2 * count)] * 2


def test_a_weight_is_the_fraction_of_the_examples_of_all_replicas_and_micro_batches(replicas):
    assert _weights(replicas(1), [6], [2]) == [[3 / 4], [1 / 4]]
    assert _weights(replicas(2), [3, 1]) == [[3 / 4, 1 / 4]]
    assert _weights(replicas(2), [4, 2], [1, 1]) == [[4 / 8, 2 / 8], [1 / 8, 1 / 8]]


def test_a_part_without_examples_has_weight_zero(replicas):
    assert _weights(replicas(1), [2], [0]) == [[1.0], [0.0]]
    assert _weights(replicas(2), [1, 0]) == [[1.0, 0.0]]
    assert _weights(replicas(2), [2, 2], [4, 0]) == [[2 / 8, 2 / 8], [4 / 8, 0.0]]


@pytest.mark.promise(9)
@pytest.mark.parametrize("mode", ["graph", "step"])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_update_is_that_of_the_mean_over_all_examples(accumulate, count, mode, replicas):
    """Micro-batches have 5 and 2 examples, replicas 3 and 2, then 1 and 1."""
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 16.0, 32.0], np.float32)
    sizes = {1: [5, 2], 2: [7]}[accumulate]
    dataset = tf.data.Dataset.from_tensor_slices({"x": values}).batch(5).repeat()
    train_step, found, _ = run(
        Line,
        dataset,
        steps=len(sizes),
        strategy=replicas(count),
        accumulate=accumulate,
        mode=mode,
    )
    # The gradient of the mean of w x is the mean of x: 15/5, then 48/2; or 63/7 at once.
    gradients = {1: [3.0, 24.0], 2: [9.0]}[accumulate]
    assert train_step.model.w.numpy() == pytest.approx(1.0 - 0.1 * sum(gradients))
    before = 1.0 - 0.1 * sum(gradients[:-1])
    assert found["losses/mean"] == pytest.approx(before * gradients[-1])


@pytest.mark.promise(9)
@pytest.mark.parametrize(
    ("count", "mode"),
    [
        (2, "graph"),
        (2, "step"),
        (8, "graph"),  # more replicas than examples
        *(
            pytest.param(*slow, marks=pytest.mark.slow)
            for slow in ((4, "graph"), (4, "step"), (8, "step"))
        ),
    ],
)
def test_batches_that_do_not_divide_count_every_example_once(count, mode, replicas):
    def uneven(strategy, mode="graph"):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(1)
        columns = {"x": X[:19], "valid": VALID[:19]}
        dataset = tf.data.Dataset.from_tensor_slices(columns).batch(6).repeat()  # 6, 6, 6, 1
        train_step, iterator = make_step(Net, dataset, strategy=strategy)
        block = Engine(train_step, mode=mode).run(iterator, 8)
        state = {v.path: v.numpy() for v in train_step.model.weights}
        return state, dict(zip(block.names, block.rows().T, strict=True))

    assert_same(uneven(replicas(1)), uneven(replicas(count), mode=mode))
