"""Keeps TensorFlow from rewriting sums so that the order of their terms depends on timing.

If TensorFlow estimates that a graph needs more than 80 % of a device's memory, which for a CPU is
always 256 MB, its memory optimizer rewrites sums of three gradients and more: each term is added to
a temporary variable as soon as it is there. So the same step gives other bits each time, also with
`tf.config.experimental.enable_op_determinism()`. `tf.config.optimizer` can't turn this optimizer
off. The options of a function call can.
"""

import contextlib
import functools
from collections.abc import Generator
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import rewriter_config_pb2
from tensorflow.python.eager import context


@contextlib.contextmanager
def ordered_sums() -> Generator[None]:
    """The functions that this thread calls add up in the order of their graphs. Host code.

    TensorFlow rewrites a function when it is called for the first time, or with other options.
    """
    eager: Any = context.context()
    before = eager.function_call_options
    eager.function_call_options = _changed(before.executor_type, before.config_proto_serialized)
    try:
        yield
    finally:
        eager.function_call_options = before


@functools.lru_cache(maxsize=8)
def _changed(executor_type: str, config: bytes) -> Any:
    changed = tf.compat.v1.ConfigProto.FromString(config)
    rewriting = changed.graph_options.rewrite_options
    rewriting.memory_optimization = rewriter_config_pb2.RewriterConfig.NO_MEM_OPT
    return context.FunctionCallOptions(executor_type, changed)
