"""Gradients of slices in a copied graph become those of a trace for XLA."""

import numpy as np
import pytest
import tensorflow as tf

from tests._upstream.test_graph_defs import part, traced
from tfloss import _upstream
from tfloss._upstream import xla_slices


def gradient(x, begin):
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(tf.slice(x, begin, [2, -1]) ** 2)
    return tape.gradient(loss, x)


@pytest.mark.upstream
@pytest.mark.parametrize("rows", [4, None])
def test_a_gradient_of_a_slice_is_the_op_that_xla_knows(rows):
    """When this fails, TensorFlow writes the gradient in another way."""
    specs = tf.TensorSpec([rows, 3]), tf.TensorSpec([2], tf.int32)
    original = traced(gradient, *specs)
    ops = part(original.graph, ())
    scope = {node.name: node for node in ops.node}
    (pad,) = [node for node in ops.node if node.op == "Pad"]
    assert xla_slices.gradient_for_xla(pad, scope, ops.library)
    assert pad.op.endswith("PartitionedCall")
    names = [one.name for one in original.inputs]

    def copied(x, begin):
        given = dict(zip(names, (x, begin), strict=True))
        return _upstream.call_ops(ops, given, [original.outputs[0].name])[0]

    values = np.arange(12.0, dtype=np.float32).reshape(4, 3), np.array([1, 0], np.int32)
    one, other = (
        tf.function(f, jit_compile=True, autograph=False)(*map(tf.constant, values))
        for f in (copied, gradient)
    )
    np.testing.assert_array_equal(one.numpy(), other.numpy())
    assert one.numpy()[1, 2] == 2 * 5.0 and one.numpy()[0, 2] == 0.0


def test_other_pads_are_left_alone():
    x = tf.TensorSpec([4, 3])

    def padded(x):
        rest = 8 - tf.shape(x)
        return tf.pad(x, [[1, 2], [0, 0]]) * tf.reduce_sum(tf.pad(x, tf.stack([rest, rest], 1)))

    ops = part(traced(padded, x).graph, ())
    scope = {node.name: node for node in ops.node}
    pads = [node for node in ops.node if node.op == "Pad"]
    assert len(pads) == 2
    assert not any(xla_slices.gradient_for_xla(node, scope, ops.library) for node in pads)
