"""Tensors of the global batch are remembered by their graph."""

import tensorflow as tf

from tfloss.forward.reduced_tensors import note_reduced, reduced_names


def test_each_graph_knows_its_own_tensors():
    found = []

    @tf.function
    def trace(x, notes):
        nested = {"a": x + 1.0, "b": [x * 2.0, None]}
        result = note_reduced(nested) if notes else nested
        assert result is nested
        names = [result["a"].name, result["b"][0].name]
        found.append((set(reduced_names()), names))
        return result["a"]

    trace(tf.constant(1.0), notes=True)
    trace(tf.constant(1.0), notes=False)
    (noted, names), (others, _) = found
    assert noted == set(names) and others == set()


def test_eager_tensors_are_left_out():
    one = tf.constant(1.0)
    assert note_reduced(one) is one
    assert len(reduced_names()) == 0
