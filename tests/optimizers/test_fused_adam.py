"""Adam in one op a variable against Keras' own, and where Keras' must stay."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.toys import Line, make_step, run
from tfloss.engine.engine import Engine
from tfloss.optimizers.fused_adam import fused_updates

ADAMS = {
    "plain": lambda: keras.optimizers.Adam(0.05),
    "schedule": lambda: keras.optimizers.Adam(
        keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.5)
    ),
    "betas": lambda: keras.optimizers.Adam(0.05, beta_1=0.5, beta_2=0.9, epsilon=1e-3),
    "clipped": lambda: keras.optimizers.Adam(0.05, clipnorm=0.1),
    "decay": lambda: keras.optimizers.AdamW(0.05, weight_decay=0.1),
}


class Net(keras.Model):
    def __init__(self, rows=False):
        super().__init__(name="net")
        self.rows = keras.layers.Embedding(5, 3, name="rows") if rows else None
        self.last = keras.layers.Dense(2, name="last", kernel_constraint="unit_norm")

    def call(self, batch, training=False):
        y = self.last(tf.sin(batch["x"])[:, None])
        if self.rows is not None:
            y += tf.reduce_sum(self.rows(batch["row"]), -1, keepdims=True)
        return {"mean": tf.reduce_mean((y - 1.0) ** 2)}


def data(rows=False):
    columns = {"x": np.arange(32, dtype=np.float32)}
    if rows:
        columns["row"] = np.arange(32, dtype=np.int32) % 4
    return tf.data.Dataset.from_tensor_slices(columns).batch(8).repeat()


def trained(optimizer, rows=False, steps=20, mode="graph", **options):
    """Every variable after some steps, and the kind of each op of a step."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    step, iterator = make_step(lambda: Net(rows), data(rows), optimizer=optimizer, **options)
    engine = Engine(step, mode=mode)
    engine.run(iterator, steps)
    graph = engine._silent.get_concrete_function(iterator, tf.constant(1)).graph.as_graph_def()
    ops = [node.op for function in graph.library.function for node in function.node_def]
    one = step.optimizers["optimizer"]
    return {v.path: v.numpy() for v in [*step.model.weights, *one.variables]}, ops


@pytest.mark.parametrize("mode", ["graph", "step"])
@pytest.mark.parametrize("name", ADAMS)
def test_the_same_numbers_as_keras_in_one_op_a_variable(name, mode):
    mine, ops = trained(ADAMS[name], mode=mode)
    theirs, before = trained(ADAMS[name], fused_adam=False, mode=mode)
    assert "ResourceApplyAdam" not in before
    assert ops.count("ResourceApplyAdam") == 2
    assert len(ops) < len(before)
    assert mine.keys() == theirs.keys()
    for path, value in theirs.items():
        np.testing.assert_allclose(mine[path], value, rtol=1e-4, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("count", [2, 4])
def test_replicas_and_one_agree(count, replicas):
    one, _ = trained(ADAMS["decay"])
    many, ops = trained(ADAMS["decay"], strategy=replicas(count))
    assert ops.count("ResourceApplyAdam") == 2 * count
    for path, value in one.items():
        np.testing.assert_allclose(many[path], value, rtol=1e-5, atol=1e-6, err_msg=path)


def test_a_sparse_gradient_is_updated_as_a_dense_one():
    mine, ops = trained(ADAMS["plain"], rows=True)
    theirs, _ = trained(ADAMS["plain"], fused_adam=False, rows=True)
    assert ops.count("ResourceApplyAdam") == 3  # kernel, bias and the embedding
    assert not np.array_equal(mine["net/rows/embeddings"][0], mine["net/rows/embeddings"][4])
    for path, value in theirs.items():
        np.testing.assert_allclose(mine[path], value, rtol=1e-4, atol=1e-6, err_msg=path)


def test_what_is_not_plain_adam_is_left_to_keras():
    class Halved(keras.optimizers.Adam):
        def update_step(self, gradient, variable, learning_rate):
            super().update_step(gradient, variable, learning_rate / 2)

    changed = keras.optimizers.Adam()
    changed.update_step = lambda *_: None
    for optimizer in [
        Halved(),
        changed,
        keras.optimizers.Adam(amsgrad=True),
        keras.optimizers.SGD(),
        keras.optimizers.Nadam(),
    ]:
        before = optimizer.update_step
        with fused_updates(optimizer):
            assert optimizer.update_step == before


def test_by_hand():
    # The first step moves by the rate, whatever the gradient, and counts.
    optimizer = keras.optimizers.Adam(0.25, epsilon=0.0)
    weight, gone = keras.Variable([1.0, -2.0]), keras.Variable(5.0)
    optimizer.build([weight, gone])
    with fused_updates(optimizer):
        optimizer.apply([tf.constant([3.0, -0.5]), tf.constant(0.1)], [weight, gone])
    assert weight.numpy() == pytest.approx([0.75, -1.75])
    assert float(gone) == pytest.approx(4.75)
    assert int(optimizer.iterations) == 1
    assert "update_step" not in vars(optimizer)


def test_a_rate_changed_between_steps_is_seen():
    def report(m, b, y):
        return {"mean": tf.reduce_mean(y)}

    step, _, _ = run(
        lambda: Line(report), data(), optimizer=lambda: keras.optimizers.Adam(0.25), steps=1
    )
    optimizer, weight = step.optimizers["optimizer"], step.model.trainable_variables[0]
    before = weight.numpy()
    optimizer.learning_rate = 0.0
    engine, iterator = Engine(step), iter(data())
    engine.run(iterator, 1)
    assert weight.numpy() == before
    optimizer.learning_rate = 0.5
    engine.run(iterator, 1)
    assert abs(weight.numpy() - before) > 0.4
