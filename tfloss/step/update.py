"""From the gradients of each replica to an update: reduced, unscaled, clipped, applied.

Cross-replica, traced.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfloss import _upstream
from tfloss.optimizers.fused_adam import fused_updates
from tfloss.optimizers.groups import Group


@dataclasses.dataclass(frozen=True)
class Reduced:
    """Gradients that are the same on all replicas.

    Attributes:
      vector: float32 [n]; `ReplicaSpec` describes it.
      gradients: PerReplica; for each group that is due a list.
      norms: float32 scalars, the global norm of each group's gradient before clipping; empty if
        they were not computed.
    """

    vector: tf.Tensor
    gradients: Any
    norms: list[tf.Tensor]


def reduce(
    strategy: tf.distribute.Strategy,
    vector: Any,
    gradients: Any,
    *,
    scale: tf.Tensor | None,
    clip_norm: float | None,
    norms: bool,
) -> Reduced:
    """Sums vector and gradients over replicas; then unscales, then clips each group.

    Args:
      strategy: The strategy that the step runs under.
      vector: PerReplica float32 [n].
      gradients: PerReplica; for each group that is due a list.
      scale: float32 scalar by which the objective was multiplied, or None.
      clip_norm: Global norm that each group's gradient is clipped to, or None.
      norms: Whether to compute norms even without clipping.
    """

    def replica(vector: tf.Tensor, gradients: list[list[Any]]) -> Any:
        if strategy.num_replicas_in_sync > 1:
            context = tf.distribute.get_replica_context()
            flat = [vector, *(g for each in gradients for g in each)]
            vector, *flat = context.all_reduce(tf.distribute.ReduceOp.SUM, flat)
            rest = iter(flat)
            gradients = [[next(rest) for _ in each] for each in gradients]
        if scale is not None:
            gradients = [[_scaled(g, 1.0 / scale) for g in each] for each in gradients]
        found = []
        if norms or clip_norm is not None:
            gradients = [[_merged(g) for g in each] for each in gradients]
            found = [_norm(each) for each in gradients]
        if clip_norm is not None:
            gradients = [
                tf.clip_by_global_norm(each, clip_norm, use_norm=norm)[0]
                for each, norm in zip(gradients, found, strict=True)
            ]
        return vector, gradients, found

    vector, gradients, found = strategy.run(replica, args=(vector, gradients))
    local = strategy.experimental_local_results
    return Reduced(local(vector)[0], gradients, [local(norm)[0] for norm in found])


def _norm(gradients: list[Any]) -> tf.Tensor:
    """The global norm, float32. TensorFlow refuses gradients of several dtypes."""
    by_dtype: dict[Any, list[Any]] = {}
    for one in gradients:
        by_dtype.setdefault(one.dtype, []).append(one)
    norms = [tf.cast(tf.linalg.global_norm(each), tf.float32) for each in by_dtype.values()]
    return norms[0] if len(norms) == 1 else tf.linalg.global_norm(norms)


def apply(
    strategy: tf.distribute.Strategy,
    gradients: Any,
    groups: Sequence[Group],
    variables: Sequence[list[Any]],
    after: tf.Tensor,
    *,
    fused_adam: bool,
) -> None:
    """Applies the gradients of each group with its optimizer.

    Args:
      strategy: The strategy that the step runs under.
      gradients: PerReplica, reduced; for each group a list.
      groups: The groups that are due.
      variables: For each group, the variables that the gradients belong to.
      after: Tensor that must be computed before anything is changed.
      fused_adam: Whether Adam is one op for each variable (`tfloss.optimizers.fused_adam`).
    """

    def replica(gradients: list[list[Any]]) -> None:
        for group, mine, each in zip(groups, variables, gradients, strict=True):
            optimizer = group.optimizer
            with _upstream.gradients_already_reduced(optimizer):
                with tf.control_dependencies([after]):
                    optimizer.apply(each, mine)

    with contextlib.ExitStack() as stack:
        for group in groups if fused_adam else ():
            stack.enter_context(fused_updates(group.optimizer))
        strategy.run(replica, args=(gradients,))


def read_states(strategy: tf.distribute.Strategy, states: Callable[[], list[Any]]) -> Any:
    """Reads variables on each replica, at this point of the trace.

    Args:
      strategy: The strategy that the step runs under.
      states: Returns the variables.

    Returns:
      PerReplica copies of the variables.
    """
    return strategy.run(lambda: [tf.identity(state) for state in states()])


def restore_states(
    strategy: tf.distribute.Strategy, states: Callable[[], list[Any]], before: Any
) -> None:
    """Restores variables on each replica.

    Args:
      strategy: The strategy that the step runs under.
      states: Returns the variables.
      before: Result of `read_states`.
    """

    def replica(values: list[tf.Tensor]) -> None:
        for state, value in zip(states(), values, strict=True):
            state.assign(value)

    strategy.run(replica, args=(before,))


def _scaled(gradient: Any, factor: tf.Tensor) -> Any:
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(gradient.values * factor, gradient.indices, gradient.dense_shape)
    return gradient * factor


def _merged(gradient: Any) -> Any:
    """The gradient of an embedding with each row once: with repeated rows its norm is too small."""
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    rows, index = tf.unique(gradient.indices)
    values = tf.math.unsorted_segment_sum(gradient.values, index, tf.size(rows))
    return tf.IndexedSlices(values, rows, gradient.dense_shape)
