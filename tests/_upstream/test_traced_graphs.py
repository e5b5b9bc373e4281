"""Traced graphs still behave as `tfloss._upstream.traced_graphs` expects."""

import keras
import pytest
import tensorflow as tf

from tfloss import _upstream
from tfloss.inspect.traced_ops import operations

pytestmark = pytest.mark.upstream


def test_rematerialised_blocks_are_recognised():
    seen = []

    def block(x):
        seen.append(_upstream.gradient_is_recorded())
        return x * 2.0

    @tf.function
    def traced(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.recompute_grad(block)(x)
            block(x)
        return tape.gradient(y, x)

    traced(tf.constant(1.0))
    assert seen[:2] == [False, True]


def test_a_variable_is_found_in_the_graph_that_reads_it():
    w = tf.Variable(1.0)

    @tf.function
    def traced():
        value = w * 2.0
        return _upstream.captured_here(w.handle).name == value.op.inputs[0].op.inputs[0].name

    assert traced.get_concrete_function() is not None and bool(traced())


def test_captures_lead_to_handles_through_nested_functions():
    one, two = tf.Variable(1.0), tf.Variable(2.0)
    inner = tf.function(lambda: one * two)
    found = []

    @tf.function(autograph=False)
    def outer():
        def body(i):
            two.assign_add(1.0)
            found.append(_upstream.captured_handles(tf.compat.v1.get_default_graph()))
            return i + 1

        return tf.while_loop(lambda i: i < 2, body, [0]), inner()

    graph = outer.get_concrete_function().graph
    assert list(found[0].values()) == [id(two.handle)]
    assert set(_upstream.captured_handles(graph).values()) == {id(one.handle), id(two.handle)}
    (call,) = [op for op in graph.get_operations() if op.type.endswith("PartitionedCall")]
    called = _upstream.called_graph(call, call.get_attr("f").name)
    assert "Mul" in {op.type for op in called.get_operations()}
    assert called.get_operations()[-1].traceback
    assert _upstream.called_graph(call, "nothing") is None


def test_ops_of_dropout_are_known_by_their_traceback():
    def draw(x):
        return tf.nn.dropout(x, 0.5) + tf.compat.v1.nn.dropout(x, rate=0.5) + tf.random.uniform([])

    graph = tf.function(draw).get_concrete_function(tf.ones([2])).graph
    made = [_upstream.made_by_dropout(op) for op in graph.get_operations() if "Uniform" in op.type]
    assert made == [True, True, False]


def test_ops_in_the_call_of_a_layer_are_known():
    class Twice(keras.layers.Layer):
        def call(self, x):
            return tf.function(lambda x: tf.tanh(x), autograph=False)(tf.exp(x))

    layer = Twice()
    graph = tf.function(lambda x: tf.sin(layer(x))).get_concrete_function(tf.ones([2])).graph
    types = {op.type: op for op, _ in operations(graph)}
    assert _upstream.made_in_layer_call(types["Exp"]) and _upstream.made_in_layer_call(
        types["Tanh"]
    )
    assert not _upstream.made_in_layer_call(types["Sin"])


def test_files_that_autograph_generates_are_known_by_their_name():
    def branch(x):
        return x if x > 0 else -x

    generated = tf.autograph.to_graph(branch).__code__.co_filename
    assert generated != __file__ and _upstream.is_autograph_file(generated)
    assert not _upstream.is_autograph_file(__file__)


def test_a_pass_has_its_own_traces_of_the_functions_that_it_calls():
    traces = []

    @tf.function
    def nested(x):
        traces.append(1)
        return x + 1.0

    def call():
        return tf.function(lambda x: nested(nested(x)))(tf.constant(1.0))

    call()
    call()
    assert len(traces) == 1
    for owner in ("a", "b", "a"):
        with _upstream.own_function_traces(owner):
            assert float(call()) == 3.0
    assert len(traces) == 3
    call()
    assert len(traces) == 3


def test_a_tensor_is_evaluated_while_its_graph_is_traced():
    found = []

    @tf.function
    def traced(x):
        found.append(_upstream.evaluated(tf.range(3) * 2))
        found.append(_upstream.evaluated(x * 2))
        return x

    traced(tf.constant(1))
    assert found[0].numpy().tolist() == [0, 2, 4]
    assert found[1] is None


@pytest.mark.parametrize("persistent", [False, True])
def test_a_tape_sums_the_uses_of_a_variable_by_one_op(persistent):
    weight = tf.Variable(1.0)

    def looped(x):
        return tf.while_loop(lambda i, _: i < 3, lambda i, y: (i + 1, y * weight), [0, x])[1]

    def terms(function, x):
        with tf.GradientTape(persistent=persistent) as tape:
            y = function(x)
        return _upstream.terms_of_gradient(tape.gradient(y, weight))

    @tf.function(autograph=False)
    def traced(x):
        assert terms(looped, x) is None
        assert terms(tf.function(lambda x: 3.0 * weight + 4.0 * weight), x) is None
        return [
            terms(lambda x: 2.0 * weight, x),
            terms(lambda x: 3.0 * weight + 4.0 * weight, x),
        ]

    found = [sorted(float(term) for term in one) for one in traced(tf.constant(1.0))]
    assert found == [[2.0], [3.0, 4.0]]


def test_arguments_and_captures_enter_a_function_while_it_is_traced():
    text, found = tf.constant(["a"]), []

    def traced(x):
        tf.equal(text, tf.constant(["b"]))
        found.extend(_upstream.function_inputs(tf.compat.v1.get_default_graph()))
        return x

    tf.function(traced, autograph=False)(tf.constant(1.0))
    assert [one.dtype for one in found] == [tf.string, tf.float32]


def test_ops_are_lifted_out_of_a_function_graph():
    graph = _upstream.function_graph("scratch")
    with graph.as_default():
        assert tf.is_symbolic_tensor(tf.constant(1.0))
        with tf.init_scope():
            assert tf.executing_eagerly() and float(tf.constant(1.0)) == 1.0
