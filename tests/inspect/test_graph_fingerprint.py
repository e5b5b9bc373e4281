"""Two steps have the same fingerprint if they compute the same."""

import re

import tensorflow as tf

from tfloss.inspect.graph_fingerprint import fingerprint, line_of


def graph_of(function, *specs):
    made = tf.function(function, autograph=False, input_signature=specs)
    return made.get_concrete_function().graph


VECTOR = tf.TensorSpec([None], tf.float32)


def test_equal_code_gives_equal_fingerprints_in_any_order():
    one = graph_of(lambda x: (tf.sin(x) + 2.0, tf.cos(x)), VECTOR)
    other = graph_of(lambda x: (tf.cos(x), tf.sin(x) + 2.0)[::-1], VECTOR)
    assert fingerprint(one) == fingerprint(other)


def test_a_constant_a_shape_and_an_op_count():
    before = fingerprint(graph_of(lambda x: x * 2.0, VECTOR))
    for other in (
        graph_of(lambda x: x * 3.0, VECTOR),
        graph_of(lambda x: x * 2.0 + 0.0, VECTOR),
        graph_of(lambda x: x / 2.0, VECTOR),
        graph_of(lambda x: x * 2.0, tf.TensorSpec([4], tf.float32)),
        graph_of(lambda x: tf.strings.join(["a", tf.strings.as_string(x * 2.0)]), VECTOR),
    ):
        assert fingerprint(other) != before


def test_functions_that_are_called_count():
    def with_branch(value):
        return graph_of(lambda x: tf.cond(x[0] > 0, lambda: x * value, lambda: x), VECTOR)

    assert fingerprint(with_branch(2.0)) == fingerprint(with_branch(2.0))
    assert fingerprint(with_branch(2.0)) != fingerprint(with_branch(3.0))


def test_the_number_of_the_replica_does_not_count(replicas):
    def numbered(index):
        with tf.Graph().as_default() as graph:
            tf.constant(index, name="replica_id_in_sync_group")
            tf.constant(7, name="other")
        return fingerprint(graph)

    assert numbered(0) == numbered(3)
    assert numbered(0) == {"Const(int32 ())": 1, "Const(int32 ()) = 7": 1}


def test_the_line_of_an_op_is_found():
    graph = graph_of(lambda x: x * 3.0, VECTOR)
    (kind,) = [kind for kind in fingerprint(graph) if kind.endswith("= 3.")]
    assert re.fullmatch(
        r".*test_graph_fingerprint\.py:\d+, in <lambda>", line_of(graph, {kind})[kind]
    )
    assert line_of(graph, set()) == {}
