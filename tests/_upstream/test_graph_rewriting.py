"""TensorFlow's memory optimizer, which makes the order of sums depend on timing, is off."""

import keras
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

import tfloss
from tfloss import _upstream

SIDE = 2_000  # 16 MB a tensor: TensorFlow rewrites graphs that need more than 205 MB
USES = (tf.sin, tf.cos, tf.tanh, tf.sigmoid, tf.exp, tf.atan, tf.sinh, tf.cosh, tf.math.erf)


def _used_often(x):
    """Uses a value often, so that as many gradients are added."""
    hidden = tf.tanh(1.01 * x)
    return tf.add_n([tf.reduce_sum(use(hidden) ** 2) for use in USES])


def _gradient(x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = _used_often(x)
    return tape.gradient(total, x)


def _optimized(run):
    """Returns the names of the ops that TensorFlow executes."""
    context.context().enable_graph_collection()
    try:
        run()
        graphs = context.context().export_run_metadata().function_graphs
    finally:
        context.context().disable_graph_collection()
    return {node.op for graph in graphs for node in graph.post_optimization_graph.node}


@pytest.mark.promise(55)
@pytest.mark.upstream
def test_tensorflow_adds_gradients_as_they_come():
    x = tf.ones([SIDE, SIDE])
    assert {"TemporaryVariable", "AssignAdd"} <= _optimized(lambda: tf.function(_gradient)(x))


@pytest.mark.promise(55)
def test_sums_stay_in_order():
    x = tf.ones([SIDE, SIDE])

    def run():
        with _upstream.ordered_sums():
            tf.function(_gradient)(x)

    assert "AddN" in (found := _optimized(run)) and "TemporaryVariable" not in found
    # The options are those of before again.
    assert "TemporaryVariable" in _optimized(lambda: tf.function(_gradient)(x))


class _Large(keras.Model):
    def __init__(self):
        super().__init__(name="large")
        self.w = self.add_weight(name="w", shape=[SIDE, SIDE], initializer="zeros")

    def call(self, batch, training=False):
        return _used_often(self.w + batch) / SIDE**2


@pytest.mark.promise(55)
def test_the_gradients_of_a_step_are_added_in_order():
    def run():
        trainer = tfloss.Trainer(
            _Large(), keras.optimizers.SGD(0.1), default_hooks=False, jit=False
        )
        trainer.train(tf.data.Dataset.from_tensors(tf.ones([1])).repeat(), steps=2)

    assert "AddN" in (found := _optimized(run)) and "TemporaryVariable" not in found
