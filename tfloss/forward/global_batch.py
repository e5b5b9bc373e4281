"""Reductions over the whole global batch, from inside a model's training forward.

    loss = tfloss.global_mean(per_box_loss, is_positive)

A loss that is divided by something which differs between replicas (positives, valid pixels,
tokens) is not the mean of the replicas' own quotients. These functions divide by the global
count, so that 1, 2 and 8 replicas compute the same loss and the same gradient. On one
replica, and outside of training, they are the plain local formulas. Replica code, traced.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from tfloss import _upstream
from tfloss.errors import LossError
from tfloss.forward.context import current_context


def global_mean(values: Any, weights: Any = None) -> tf.Tensor:
    """`sum(values * weights) / sum(weights)`, both over the global batch.

    The global batch is everything that one update sees: all replicas and all micro-batches.

    Args:
      values: floating-point tensor of any shape, on each replica its own.
      weights: None, or a tensor that broadcasts against `values`: a mask, counts. An element
        of weight 0 takes no part, even if its value is NaN or infinite. (Its gradient is 0,
        but what computed the value multiplies that by its own: mask the argument of a
        logarithm or a root, not only the result.)

    Returns:
      A float32 scalar on each replica. Their mean over replicas (weighted by the examples that
      each has), which is what a `TrainStep` minimises and logs, is the global mean, and so is
      its gradient. It is 0, with gradient 0, where the sum of weights is 0: on one replica or
      on all.

    Raises:
      LossError: values that are not floating-point; inside a loop, branch or `tf.function`.
    """
    total, weight = _local_sums(values, weights)
    context = current_context()
    if context is not None and context.normalisers is not None:
        return context.normalisers.mean(total, weight, context.share)
    return tf.math.divide_no_nan(total, _times(_all_reduce_sum(weight), _share()))


def global_sum(values: Any, weights: Any = None) -> tf.Tensor:
    """`sum(values * weights)` over the global batch; arguments and result as `global_mean`."""
    total, share = _local_sums(values, weights)[0], _share()
    return total if _is_one(share) else tf.math.divide_no_nan(total, share)


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


def _share() -> "float | tf.Tensor":
    """What this replica's loss counts in the objective."""
    context = current_context()
    if context is not None:
        return context.share
    replicas = _context()
    return 1.0 if replicas is None else 1.0 / replicas.num_replicas_in_sync


def _is_one(share: Any) -> bool:
    return isinstance(share, float) and share == 1.0


def _times(value: tf.Tensor, share: Any) -> tf.Tensor:
    return value if _is_one(share) else value * share


def _all_reduce_sum(value: tf.Tensor) -> tf.Tensor:
    context = _context()
    if context is None:
        return value
    with _refused_under_xla("global_mean"):
        return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


_NESTED = (
    "tfloss.{} is called inside a loop, a branch or a nested tf.function, where the replicas can't "
    "be synchronised. Call it outside of them."
)


@contextlib.contextmanager
def _refused_under_xla(name: str) -> Iterator[None]:
    """TensorFlow can't synchronise replicas inside a compiled (nested) function."""
    try:
        yield
    except RuntimeError as error:
        if not _upstream.caused_by_merge_call(error):
            raise
        raise LossError(
            _NESTED.format(name) + " If it already is, train with jit=False on several replicas."
        ) from None


class CountingNormalisers:
    """Notes the local sums of every `global_mean` of a forward pass that is run for them only.

    What can't be reduced in the middle of a forward pass (compiled by XLA; before the other
    micro-batches have run) is found by this pass beforehand. TensorFlow prunes from it what the
    sums don't need: usually they need the labels only.

    Args:
      reaches: whether a tensor depends on a trainable variable. Weights that do have a
        gradient, for which the sum of the values is needed as well.
    """

    def __init__(self, reaches: Callable[[tf.Tensor], bool]):
        self._reaches = reaches
        self._graph = _graph()
        self.sums: list[tf.Tensor] = []  # float32 [2]: sum of values, sum of weights
        self.learned: list[bool] = []

    def mean(self, total: tf.Tensor, weight: tf.Tensor, share: Any) -> tf.Tensor:
        if _graph() is not self._graph:
            raise LossError(_NESTED.format("global_mean"))
        learned = self._reaches(weight)
        self.learned.append(learned)
        self.sums.append(tf.stack([total if learned else tf.zeros([]), weight]))
        return tf.math.divide_no_nan(total, weight)


class GivenNormalisers:
    """Gives every `global_mean` the global sums that a counting pass found, in order.

    Args:
      sums: float32 [n, 2], the sums over replicas and micro-batches.
      learned: for each, whether its weights have a gradient.
    """

    def __init__(self, sums: tf.Tensor, learned: Sequence[bool]):
        self._sums, self._learned = sums, learned
        self._next = 0

    def mean(self, total: tf.Tensor, weight: tf.Tensor, share: Any) -> tf.Tensor:
        if self._next >= len(self._learned):
            raise LossError(
                "The training forward called tfloss.global_mean more often than when its "
                "global sums were counted. Call it equally often in every forward pass."
            )
        index, self._next = self._next, self._next + 1
        all_total, all_weight = tf.unstack(self._sums[index])
        if self._learned[index]:
            # d(S/W) = dS/W - S/W^2 dW: of value 0, with the gradient of the second term.
            mean = tf.math.divide_no_nan(all_total, all_weight)
            total -= mean * (weight - tf.stop_gradient(weight))
        return tf.math.divide_no_nan(total, _times(all_weight, share))


def _graph() -> Any:
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
