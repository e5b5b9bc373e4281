"""Makes random numbers under XLA equal to those of the graph.

TensorFlow's stateless generators give the same bits everywhere, but XLA makes other floats of them
(https://github.com/tensorflow/tensorflow/issues/117644, open): the same seed gives another Dropout
mask once a step is compiled. Here the floats are made from the bits in the way of the graph's
kernels. This covers `tf.random.stateless_uniform` and `stateless_normal`, and so Dropout and
`keras.random`. It does not cover `stateless_truncated_normal` and `stateless_gamma`, which reject
draws one by one, nor float64.

There is no public switch, so both functions are replaced while a compiled part is traced.
`tests/_upstream/test_xla_random.py` fails when the numbers agree without it, or no longer with it.
"""

import contextlib
import math
import threading
from collections.abc import Callable, Generator
from typing import Any

import tensorflow as tf
from tensorflow.python.ops import stateless_random_ops  # where tf.nn's dropout looks it up

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
            size = tf.reduce_prod(shape)
            pairs = [(size + 1) // 2, 2]
            bits = _bits(pairs, seed, alg)
            # Box-Muller, as in tensorflow/core/lib/random/random_distributions.h.
            first = tf.maximum(unit(bits[:, 0], tf.float32), 1e-7)
            angle = 2 * math.pi * unit(bits[:, 1], tf.float32)
            radius = tf.sqrt(-2 * tf.math.log(first))
            values = tf.stack([tf.sin(angle) * radius, tf.cos(angle) * radius], 1)
            values = tf.cast(tf.reshape(tf.reshape(values, [-1])[:size], shape), dtype)
            return values * tf.cast(stddev, dtype) + tf.cast(mean, dtype)

    return stateless_random_normal


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
