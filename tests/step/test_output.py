"""The numbers of a step on their way to the engine."""

import numpy as np
import tensorflow as tf

from tfloss.step.output import StepOutput


def test_a_row_has_the_scalars_in_their_order_wherever_they_come_from():
    @tf.function
    def row():
        first, second = tf.constant([0.0, 1.0, 2.0, 3.0]), tf.constant([10.0, 11.0])
        a, b = tf.unstack(first), tf.unstack(second)
        scalars = [a[0], a[1], a[3], a[2], b[0], tf.constant(7.0), tf.constant(8.0), b[1], a[1]]
        vectors = [(first, a), (second, b)]
        return StepOutput({str(i): x for i, x in enumerate(scalars)}, [], vectors=vectors).row()

    np.testing.assert_array_equal(row(), [0, 1, 3, 2, 10, 7, 8, 11, 1])


def test_a_vector_that_is_in_order_is_not_taken_apart():
    @tf.function
    def row(vector, rate):
        each = tf.unstack(vector)
        scalars = {str(i): x for i, x in enumerate([*each, rate])}
        return StepOutput(scalars, [], vectors=[(vector, each)]).row()

    graph = row.get_concrete_function(tf.TensorSpec([100]), tf.TensorSpec([])).graph
    todo, found = [graph.outputs[0].op], set()
    while todo:
        op = todo.pop()
        found.add(op.type)
        todo += [one.op for one in op.inputs]
    assert "Unpack" not in found
