"""Reductions over the whole global batch, from inside a model's training forward.

    loss = tfloss.global_mean(per_box_loss, is_positive)

A loss that is divided by something which differs between replicas (positives, valid pixels,
tokens) is not the mean of the replicas' own quotients. These functions divide by the global
count, so that 1, 2 and 8 replicas compute the same loss and the same gradient. On one
replica, and outside of training, they are the plain local formulas. Replica code, traced.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfloss.errors import LossError


def global_mean(values: Any, weights: Any = None) -> tf.Tensor:
    """`sum(values * weights) / sum(weights)`, both over the global batch.

    Args:
      values: floating-point tensor of any shape, on each replica its own.
      weights: None, or a tensor that broadcasts against `values`: a mask, counts. An element
        of weight 0 takes no part, even if its value is NaN or infinite. (Its gradient is 0,
        but what computed the value multiplies that by its own: mask the argument of a
        logarithm or a root, not only the result.)

    Returns:
      A float32 scalar on each replica. Their mean over replicas, which is what a `TrainStep`
      minimises and logs, is the global mean, and so is its gradient. It is 0, with gradient
      0, where the sum of weights is 0: on one replica or on all.

    Raises:
      LossError: values that are not floating-point; under XLA on several replicas.
    """
    total, weight = _local_sums(values, weights)
    return tf.math.divide_no_nan(total * _replicas(), _all_reduce_sum(weight))


def global_sum(values: Any, weights: Any = None) -> tf.Tensor:
    """`sum(values * weights)` over the global batch; arguments and result as `global_mean`."""
    return _local_sums(values, weights)[0] * _replicas()


def cross_replica_concat(tensor: Any) -> tf.Tensor:
    """The replicas' tensors, concatenated along the first dimension, in order of replicas.

    For contrastive losses that take everybody's embeddings as negatives. The gradient flows
    to the replica that a row came from, from the losses of all replicas.

    Args:
      tensor: [n, ...] of a numeric dtype, the same shape on every replica.

    Returns:
      [n * replicas, ...] on each replica.

    Raises:
      LossError: under XLA on several replicas.
    """
    tensor = tf.convert_to_tensor(tensor)
    context = _context()
    if context is None:
        return tensor
    with _refused_under_xla("cross_replica_concat"):
        return context.all_gather(tensor, axis=0)


def _local_sums(values: Any, weights: Any) -> tuple[tf.Tensor, tf.Tensor]:
    values = tf.convert_to_tensor(values)
    if not values.dtype.is_floating:
        raise LossError(f"global_mean and global_sum need floats, got {values.dtype.name}.")
    values = tf.cast(values, tf.float32)
    if weights is None:
        return tf.reduce_sum(values), tf.cast(tf.size(values), tf.float32)
    weights = tf.broadcast_to(tf.cast(weights, tf.float32), tf.shape(values))
    counts = tf.not_equal(weights, 0.0)
    # Before the product: 0 * NaN is NaN, and so is its gradient.
    values = tf.where(counts, values, tf.zeros_like(values))
    return tf.reduce_sum(values * weights), tf.reduce_sum(weights)


def _context() -> Any:
    """The replica context, if there are several replicas."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return None
    return context


def _replicas() -> float:
    context = _context()
    return 1.0 if context is None else float(context.num_replicas_in_sync)


def _all_reduce_sum(value: tf.Tensor) -> tf.Tensor:
    context = _context()
    if context is None:
        return value
    with _refused_under_xla("global_mean"):
        return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


@contextlib.contextmanager
def _refused_under_xla(name: str) -> Iterator[None]:
    """TensorFlow can't synchronise replicas inside a compiled (nested) function."""
    try:
        yield
    except RuntimeError as error:
        if "merge_call" not in str(error):
            raise
        raise LossError(
            f"tfloss.{name} must synchronise the replicas, which a nested tf.function and XLA "
            "can't: train with jit=False on several replicas, and call it outside of loops, "
            "branches and tf.functions."
        ) from None
