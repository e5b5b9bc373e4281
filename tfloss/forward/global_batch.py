"""Reductions over the whole global batch, called inside a model's training forward.

    loss = tfloss.global_mean(per_box_loss, is_positive)

A loss may be divided by a number that differs between replicas, such as positives, valid pixels or
tokens. The mean over replicas of such quotients is not the quotient of the global batch. These
functions divide by the global count, so that 1, 2 and 8 replicas compute the same loss and the same
gradient. On one replica, and outside of training, they are the plain local formulas. Replica code,
traced.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfloss.errors import LossError
from tfloss.forward.context import current_context
from tfloss.forward.reduced_tensors import note_reduced
from tfloss.forward.synchronisation import nested_call_error, synchronisation_explained


def global_mean(values: Any, weights: Any = None) -> tf.Tensor:
    """Computes `sum(values * weights) / sum(weights)`, with both sums over the global batch.

    The global batch is everything one update uses: all replicas and all micro-batches. Runs
    traced, in replica code.

    Args:
      values: Floating-point tensor of any shape, different on each replica.
      weights: Mask, counts or other weights that broadcast against `values`, or None. Values with
        weight 0 are ignored, even if they are NaN or infinite. Their gradient is 0, but the
        gradient of the code that computed them multiplies this 0 by its own factor. So mask the
        argument of a logarithm or a root, not only the result.

    Returns:
      A float32 scalar on each replica. The mean of these over replicas, weighted by their numbers
      of examples, is the global mean; the same holds for the gradients. `TrainStep` minimises and
      logs this mean. It is 0, with gradient 0, if the sum of all weights is 0.

    Raises:
      LossError: The values are not floating-point, or the call is inside a loop, a branch or a
        nested `tf.function`.
    """
    total, weight = _local_sums(values, weights)
    context = current_context()
    if context is not None and context.normalisers is not None:
        return note_reduced(context.normalisers.mean(total, weight, context.example_weight))
    weight = _times(_all_reduce_sum(weight), _example_weight())
    return note_reduced(tf.math.divide_no_nan(total, weight))


def global_sum(values: Any, weights: Any = None) -> tf.Tensor:
    """Computes `sum(values * weights)` over the global batch. Runs traced, in replica code.

    Args:
      values: Floating-point tensor of any shape, different on each replica.
      weights: As for `global_mean`.

    Returns:
      A float32 scalar on each replica. The mean of these over replicas, weighted by their numbers
      of examples, is the global sum; the same holds for the gradients.

    Raises:
      LossError: The values are not floating-point.
    """
    total, example_weight = _local_sums(values, weights)[0], _example_weight()
    if not _is_one(example_weight):
        total = tf.math.divide_no_nan(total, example_weight)
    return note_reduced(total)


def divides_batch() -> bool:
    """Returns whether this forward pass has only a part of the global batch. Replica code."""
    context = current_context()
    if context is not None and context.normalisers is not None:
        return True
    return _replica_context() is not None or not _is_one(_example_weight())


def cross_replica_concat(tensor: Any) -> tf.Tensor:
    """Concatenates the tensors of all replicas. Runs traced, in replica code.

    This is for contrastive losses that use the embeddings of all replicas as negatives. The
    gradient of a row, summed over the losses of all replicas, flows back to the replica that the
    row comes from.

    Args:
      tensor: Tensor [n, ...] of a numeric dtype, with the same shape on every replica.

    Returns:
      Tensor [n * replicas, ...] on each replica, in the order of the replicas.

    Raises:
      LossError: The call is compiled by XLA on several replicas, or is inside a loop, a branch or
        a nested `tf.function`.
    """
    tensor = tf.convert_to_tensor(tensor)
    context = _replica_context()
    if context is None:
        return tensor
    with synchronisation_explained("tfloss.cross_replica_concat"):
        return context.all_gather(tensor, axis=0)


def _local_sums(values: Any, weights: Any) -> tuple[tf.Tensor, tf.Tensor]:
    values = tf.convert_to_tensor(values)
    if not values.dtype.is_floating:
        raise LossError(
            f"global_mean and global_sum need floating-point values, got {values.dtype.name}."
        )
    values = tf.cast(values, tf.float32)
    if weights is None:
        return tf.reduce_sum(values), tf.cast(tf.size(values), tf.float32)
    weights = tf.broadcast_to(tf.cast(weights, tf.float32), tf.shape(values))
    counts = tf.not_equal(weights, 0.0)
    # Before the product: 0 * NaN is NaN, and so is its gradient.
    values = tf.where(counts, values, tf.zeros_like(values))
    return tf.reduce_sum(values * weights), tf.reduce_sum(weights)


def _replica_context() -> Any:
    """Returns the replica context, or None if there is only one replica."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return None
    return context


def _example_weight() -> "float | tf.Tensor":
    """Returns the weight of this replica's loss in the objective."""
    context = current_context()
    if context is not None:
        return context.example_weight
    replicas = _replica_context()
    return 1.0 if replicas is None else 1.0 / replicas.num_replicas_in_sync


def _is_one(example_weight: Any) -> bool:
    return isinstance(example_weight, float) and example_weight == 1.0


def _times(value: tf.Tensor, example_weight: Any) -> tf.Tensor:
    return value if _is_one(example_weight) else value * example_weight


def _all_reduce_sum(value: tf.Tensor) -> tf.Tensor:
    context = _replica_context()
    if context is None:
        return value
    with synchronisation_explained("tfloss.global_mean"):
        return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


class CountingNormalisers:
    """Collects the local sums of every `global_mean` of a forward pass. Replica code, traced.

    Some forward passes can't be synchronised in the middle: those compiled by XLA, and those
    before other micro-batches have run. An additional pass with this object finds their sums in
    advance. TensorFlow removes from it everything that the sums don't need. Usually they need only
    the labels.

    Attributes:
      sums: Sum of values and sum of weights of each `global_mean`, float32 [2].
      learned: Whether the weights of each `global_mean` have a gradient.
    """

    def __init__(self, reaches: Callable[[tf.Tensor], bool]):
        """Creates an object for one forward pass in the current graph.

        Args:
          reaches: Returns whether a tensor depends on a trainable variable. Weights that do have a
            gradient, which needs the sum of the values too.
        """
        self._reaches = reaches
        self._graph = _current_graph()
        self.sums: list[tf.Tensor] = []
        self.learned: list[bool] = []

    def mean(self, total: tf.Tensor, weight: tf.Tensor, example_weight: Any) -> tf.Tensor:
        """Collects the sums of one `global_mean`.

        Args:
          total: Local weighted sum of the values, float32 scalar.
          weight: Local sum of the weights, float32 scalar.
          example_weight: Not used.

        Returns:
          The local mean, float32 scalar, for code that depends on it.

        Raises:
          LossError: The call is inside a loop, a branch or a nested `tf.function`.
        """
        if _current_graph() is not self._graph:
            raise nested_call_error("tfloss.global_mean")
        learned = self._reaches(weight)
        self.learned.append(learned)
        self.sums.append(tf.stack([total if learned else tf.zeros([]), weight]))
        return tf.math.divide_no_nan(total, weight)


class GivenNormalisers:
    """Passes the sums that a counting pass found to every `global_mean`. Replica code, traced."""

    def __init__(self, sums: tf.Tensor, learned: Sequence[bool]):
        """Creates an object for one forward pass.

        Args:
          sums: Sums over replicas and micro-batches, float32 [n, 2], in the order of the calls.
          learned: Whether the weights of each call have a gradient.
        """
        self._sums, self._learned = sums, learned
        self._next = 0

    def mean(self, total: tf.Tensor, weight: tf.Tensor, example_weight: Any) -> tf.Tensor:
        """Computes one `global_mean` with the next pair of sums.

        Args:
          total: Local weighted sum of the values, float32 scalar.
          weight: Local sum of the weights, float32 scalar.
          example_weight: Weight of this forward pass in the objective.

        Returns:
          The local part of the global mean, float32 scalar.

        Raises:
          LossError: There are more calls than in the counting pass.
        """
        if self._next >= len(self._learned):
            raise LossError(
                "The training forward called tfloss.global_mean more often than in the pass that "
                "counted its global sums. Call it the same number of times in every forward pass."
            )
        index, self._next = self._next, self._next + 1
        all_total, all_weight = tf.unstack(self._sums[index])
        if self._learned[index]:
            # d(S/W) = dS/W - S/W^2 dW. The added term is 0 and has the gradient of the second one.
            mean = tf.math.divide_no_nan(all_total, all_weight)
            total -= mean * (weight - tf.stop_gradient(weight))
        return tf.math.divide_no_nan(total, _times(all_weight, example_weight))


def _current_graph() -> Any:
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
