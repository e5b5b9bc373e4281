"""Under XLA the stateless generators draw what they draw in a graph."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfloss._upstream import xla_random as _xla_random


def both(draw):
    """What `draw` gives in a graph, and compiled."""

    def compiled():
        with _xla_random.as_in_a_graph():
            return draw()

    plain = tf.function(draw, autograph=False)()
    return plain.numpy(), tf.function(compiled, jit_compile=True, autograph=False)().numpy()


@pytest.mark.upstream
def test_without_help_xla_draws_other_floats():
    """When this fails, tensorflow#117644 is closed and `_xla_random` can go."""

    def draw():
        return tf.random.stateless_uniform([7], [1, 2])

    compiled = tf.function(draw, jit_compile=True)().numpy()
    assert not np.array_equal(compiled, draw().numpy())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", [[], [1], [7], [3, 5], [1000], [0]])
def test_uniform(dtype, shape):
    graph, xla = both(lambda: tf.random.stateless_uniform(shape, [3, 4], dtype=dtype))
    np.testing.assert_array_equal(graph, xla)
    # Scaled, XLA may fuse the product and the sum, and round once.
    graph, xla = both(lambda: tf.random.stateless_uniform(shape, [3, 4], -1, 2, dtype))
    near = {"float32": 3e-7, "float16": 2e-3, "bfloat16": 2e-2}[dtype]
    np.testing.assert_allclose(graph.astype(np.float32), xla.astype(np.float32), rtol=0, atol=near)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", [[], [1], [7], [3, 5], [1001], [0]])
def test_normal(dtype, shape):
    graph, xla = both(lambda: tf.random.stateless_normal(shape, [3, 4], 1.0, 2.0, dtype))
    assert xla.dtype == graph.dtype and xla.shape == graph.shape
    rounding = {"float32": 2e-6, "float16": 4e-3, "bfloat16": 4e-2}[dtype]
    np.testing.assert_allclose(
        graph.astype(np.float32), xla.astype(np.float32), rtol=rounding, atol=rounding
    )


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_dropout(policy):
    layer = keras.layers.Dropout(0.3, seed=1, dtype=policy)
    layer.build((50, 20))

    def draw():
        layer.seed_generator.state.assign(tf.constant([5, 6], layer.seed_generator.state.dtype))
        return layer(tf.ones([50, 20]), training=True)

    graph, xla = both(draw)
    np.testing.assert_array_equal(graph, xla)
    assert 0.6 < (graph != 0).mean() < 0.8


def test_what_is_left_to_tensorflow():
    """Integers agree by themselves; float64 and truncated draws are not touched."""
    graph, xla = both(lambda: tf.random.stateless_uniform([9], [1, 2], 0, 10, tf.int32))
    np.testing.assert_array_equal(graph, xla)
    for draw in (
        lambda: tf.random.stateless_uniform([9], [1, 2], dtype=tf.float64),
        lambda: tf.random.stateless_truncated_normal([9], [1, 2]),
    ):
        plain = tf.function(draw, jit_compile=True)().numpy()
        np.testing.assert_array_equal(both(draw)[1], plain)


@pytest.mark.upstream
@pytest.mark.parametrize(
    "name", ["truncated_normal", "gamma", "categorical", "float64", "Generator"]
)
def test_what_xla_draws_otherwise(name):
    """As docs/performance.md says; when one fails, it can be left out there."""
    seed = [1, 2]
    generator = tf.random.Generator.from_seed(1)
    logits = tf.constant([[0.0, 1.0, 2.0]])  # here: in a function it would be folded, draws and all

    def from_generator():
        with tf.control_dependencies([generator.state.assign(tf.constant([1, 2, 3], tf.int64))]):
            return generator.uniform([50])

    draw = {
        "truncated_normal": lambda: tf.random.stateless_truncated_normal([50], seed),
        "gamma": lambda: tf.random.stateless_gamma([50], seed, 2.0),
        "categorical": lambda: tf.random.stateless_categorical(logits, 50, seed),
        "float64": lambda: tf.random.stateless_uniform([50], seed, dtype=tf.float64),
        "Generator": from_generator,
    }[name]
    try:
        graph, xla = both(draw)
    except tf.errors.InvalidArgumentError as error:  # not compiled at all
        assert name == "gamma" and "StatelessRandomGammaV" in str(error)
    else:
        assert not np.allclose(graph, xla)


def test_outside_nothing_has_changed():
    before = tf.random.stateless_uniform, tf.random.stateless_normal
    with _xla_random.as_in_a_graph():
        assert tf.random.stateless_uniform is not before[0]
    assert (tf.random.stateless_uniform, tf.random.stateless_normal) == before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ops_of_a_copied_graph_are_those_of_a_trace_for_xla(dtype):
    def draw():
        shape = tf.constant([3, 5], tf.int64)
        one = tf.random.stateless_uniform(shape, [3, 4], -1, 2, dtype)
        return one + tf.random.stateless_normal([3, 5], [5, 6], 1.0, 2.0, dtype)

    original = tf.function(draw, autograph=False).get_concrete_function()
    ops = original.graph.as_graph_def()
    assert [_xla_random.draw_as_in_a_graph(node, ops.library) for node in ops.node].count(True) == 2
    result = original.outputs[0].name

    def copied():
        return tf.graph_util.import_graph_def(ops, {}, [result])[0]

    def traced():
        with _xla_random.as_in_a_graph():
            return draw()

    one, other = (tf.function(f, jit_compile=True, autograph=False)() for f in (copied, traced))
    np.testing.assert_array_equal(one.numpy(), other.numpy())
