"""Makes random numbers under XLA equal to those of the graph.

TensorFlow's stateless generators give the same bits everywhere, but XLA makes other floats of them
(https://github.com/tensorflow/tensorflow/issues/117644, open): the same seed gives another Dropout
mask once a step is compiled. Here the floats are made from the bits in the way of the graph's
kernels. This covers `tf.random.stateless_uniform` and `stateless_normal`, and so Dropout and
`keras.random`. It does not cover `stateless_truncated_normal` and `stateless_gamma`, which reject
draws one by one, nor float64.

There is no public switch, so both functions are replaced while a compiled part is traced.
`tests/_upstream/test_xla_random.py` fails when the numbers agree without it, or no longer with it.
In a copy of a graph, which was traced without that, the ops themselves are replaced.
"""

import contextlib
import functools
import math
import threading
from collections.abc import Callable, Generator
from typing import Any

import tensorflow as tf
from tensorflow.python.ops import stateless_random_ops  # where tf.nn's dropout looks it up

from tfloss._upstream.graph_defs import call_function
from tfloss._upstream.patching import replaced

_thread = threading.local()
# By dtype: the unsigned type of the same size, the bits of 1.0, and the mask of the mantissa.
_FORMATS = {
    tf.float32: (tf.uint32, 0x3F800000, 0x7FFFFF),
    tf.float16: (tf.uint16, 0x3C00, 0x3FF),
    tf.bfloat16: (tf.uint16, 0x3F80, 0x7F),
}


@contextlib.contextmanager
def as_in_a_graph() -> Generator[None]:
    """Makes what this thread traces for XLA draw the random numbers of a graph. Trace time.

    Yields:
      None.
    """
    with contextlib.ExitStack() as stack:
        for name, make in (("uniform", _make_uniform), ("normal", _make_normal)):
            stack.enter_context(replaced(tf.random, f"stateless_{name}", make))
            stack.enter_context(replaced(stateless_random_ops, f"stateless_random_{name}", make))
        depth = getattr(_thread, "depth", 0)
        _thread.depth = depth + 1
        try:
            yield
        finally:
            _thread.depth = depth


def draw_as_in_a_graph(node: Any, library: Any) -> bool:
    """Makes a node of a copied graph draw the random numbers of a graph under XLA.

    Args:
      node: `NodeDef`. If it draws floats, it becomes a call of a function.
      library: `FunctionDefLibrary` that gets the function.

    Returns:
      Whether the node was changed.
    """
    kind = _DRAWS.get(node.op)
    if kind is None:
        return False
    dtype = node.attr["dtype"].type if "dtype" in node.attr else 0
    if tf.as_dtype(dtype) not in _FORMATS:
        return False
    shape = node.attr["Tshape"].type if "Tshape" in node.attr else tf.int32.as_datatype_enum
    call, _ = _draw_call(kind, tf.as_dtype(dtype), tf.as_dtype(shape))
    call_function(node, call, library)
    return True


@functools.cache
def _draw_call(kind: str, dtype: tf.DType, shape_dtype: tf.DType) -> tuple[Any, Any]:
    """A `GraphDef` that calls a function which draws floats from a shape, key, counter and alg.

    And the function, which TensorFlow forgets when nothing refers to it any more.
    """

    def bits(shape: Any, key: Any, counter: Any, alg: Any) -> tf.Tensor:
        return tf.raw_ops.StatelessRandomUniformFullIntV2(
            shape=shape, key=key, counter=counter, alg=alg, dtype=tf.uint32
        )

    def draw(shape: Any, *rest: Any) -> tf.Tensor:
        if kind == "uniform":
            return unit(bits(shape, *rest), dtype)
        return tf.cast(_normal(tf.cast(shape, tf.int32), lambda pairs: bits(pairs, *rest)), dtype)

    key, counter = tf.TensorSpec([1], tf.uint64), tf.TensorSpec([None], tf.uint64)
    specs = tf.TensorSpec([None], shape_dtype), key, counter, tf.TensorSpec([], tf.int32)
    with tf.Graph().as_default() as graph:
        given = [tf.compat.v1.placeholder(one.dtype, one.shape) for one in specs]
        function = tf.function(draw, autograph=False)
        function(*given)
    return graph.as_graph_def(), function


_DRAWS = {"StatelessRandomUniformV2": "uniform", "StatelessRandomNormalV2": "normal"}


def _applies(dtype: Any) -> bool:
    return getattr(_thread, "depth", 0) > 0 and tf.as_dtype(dtype) in _FORMATS


def _make_uniform(original: Callable[..., Any]) -> Callable[..., Any]:
    def stateless_random_uniform(
        shape: Any,
        seed: Any,
        minval: Any = 0,
        maxval: Any = None,
        dtype: Any = tf.float32,
        name: str | None = None,
        alg: Any = "auto_select",
    ) -> Any:
        if not _applies(dtype):
            return original(shape, seed, minval, maxval, dtype, name, alg)
        with tf.name_scope(name or "stateless_random_uniform"):
            low = tf.convert_to_tensor(minval, dtype)
            high = tf.convert_to_tensor(1 if maxval is None else maxval, dtype)
            bits = _bits(shape, seed, alg)
            return unit(bits, tf.as_dtype(dtype)) * (high - low) + low

    return stateless_random_uniform


def _make_normal(original: Callable[..., Any]) -> Callable[..., Any]:
    def stateless_random_normal(
        shape: Any,
        seed: Any,
        mean: Any = 0.0,
        stddev: Any = 1.0,
        dtype: Any = tf.float32,
        name: str | None = None,
        alg: Any = "auto_select",
    ) -> Any:
        if not _applies(dtype):
            return original(shape, seed, mean, stddev, dtype, name, alg)
        with tf.name_scope(name or "stateless_random_normal"):
            shape = tf.cast(tf.convert_to_tensor(shape), tf.int32)
            values = tf.cast(_normal(shape, lambda pairs: _bits(pairs, seed, alg)), dtype)
            return values * tf.cast(stddev, dtype) + tf.cast(mean, dtype)

    return stateless_random_normal


def _normal(shape: tf.Tensor, draw_bits: Callable[[Any], tf.Tensor]) -> tf.Tensor:
    """Normal numbers of a shape, float32, from bits. Traced."""
    size = tf.reduce_prod(shape)
    bits = draw_bits([(size + 1) // 2, 2])
    # Box-Muller, as in tensorflow/core/lib/random/random_distributions.h.
    first = tf.maximum(unit(bits[:, 0], tf.float32), 1e-7)
    angle = 2 * math.pi * unit(bits[:, 1], tf.float32)
    radius = tf.sqrt(-2 * tf.math.log(first))
    values = tf.stack([tf.sin(angle) * radius, tf.cos(angle) * radius], 1)
    return tf.reshape(tf.reshape(values, [-1])[:size], shape)


def _bits(shape: Any, seed: Any, alg: Any) -> tf.Tensor:
    integers: Any = tf.random.stateless_uniform  # not changed for integers
    return integers(shape, seed, None, None, tf.uint32, alg=alg)


def unit(bits: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Converts random bits to numbers in [0, 1), as the kernels of the graph do. Traced.

    The bits become the mantissa of a number in [1, 2), from which 1 is subtracted.

    Args:
      bits: Random bits, uint32 of any shape.
      dtype: float32, float16 or bfloat16.

    Returns:
      Numbers in [0, 1), of the shape of `bits` and of `dtype`.
    """
    integer, one, mantissa = _FORMATS[dtype]
    bits = tf.cast(bits & mantissa, integer) | tf.constant(one, integer)
    return tf.bitcast(bits, dtype) - tf.ones([], dtype)
