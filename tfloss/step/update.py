"""From one replica's gradients to an update: reduced, unscaled, clipped, applied or left out.

Cross-replica, traced: what is decided here is decided from what all replicas found, outside of
`strategy.run`, where MirroredStrategy allows a branch.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.data.batches import MicroBatches
from tfloss.optimizers.fused_adam import fused_updates
from tfloss.optimizers.groups import Group
from tfloss.step.backward import Backward

# Only those whose code was read for it, exactly: a subclass may do anything.
_MOVED_BY_GRADIENTS_AND_RATE = (
    keras.optimizers.SGD,
    keras.optimizers.RMSprop,
    keras.optimizers.Adagrad,
    keras.optimizers.Adam,
    keras.optimizers.AdamW,
)
_COMPUTED_FROM_ITERATIONS = (
    keras.optimizers.schedules.CosineDecay,
    keras.optimizers.schedules.CosineDecayRestarts,
    keras.optimizers.schedules.ExponentialDecay,
    keras.optimizers.schedules.InverseTimeDecay,
    keras.optimizers.schedules.PiecewiseConstantDecay,
    keras.optimizers.schedules.PolynomialDecay,
)


@dataclasses.dataclass
class Reduced:
    """Gradients as all replicas see them.

    Attributes:
      vector: float32, what `ReplicaReport` describes.
      gradients: PerReplica; for each due group a list.
      norms: float32 scalars, the global norm of each due group's gradient, before clipping;
        empty where nobody asked.
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
      vector, gradients: PerReplica, as `Backward.gradients` returns them.
      scale: what the objective was multiplied by, or None.
      clip_norm: the global norm each group's gradient is clipped to, or None.
      norms: whether norms are wanted without clipping, too.
    """

    def replica(vector, gradients):
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
    """The global norm, float32; of gradients of several dtypes too, which TensorFlow refuses."""
    alike: dict[Any, list[Any]] = {}
    for one in gradients:
        alike.setdefault(one.dtype, []).append(one)
    norms = [tf.cast(tf.linalg.global_norm(each), tf.float32) for each in alike.values()]
    return norms[0] if len(norms) == 1 else tf.linalg.global_norm(norms)


def accumulate(
    strategy: tf.distribute.Strategy,
    backward: Backward,
    micro: MicroBatches,
    shares: list[Any],
    more: tuple,
) -> tuple[Any, Any, list[list[tf.Tensor]]]:
    """Runs every micro-batch and sums what they give.

    Args:
      shares: what each micro-batch counts.
      more: the other arguments of `Backward.gradients`.

    Returns:
      Vector and gradients, PerReplica; by summary, what each replica and micro-batch has of it.
    """

    def once(batch, share, more):
        step, scale, sums = more
        return strategy.run(backward.gradients, args=(batch, step, share, scale, sums))

    def add(sums, found):
        return tf.nest.map_structure(_added, sums, found)

    local = strategy.experimental_local_results
    if len(micro) > 1:
        once = tf.function(once, autograph=False)  # traced once for all
    total: Any = None
    each: list[Any] = []
    for batch, share in zip(micro, shares, strict=True):
        # One after the other, so that only one of them holds its activations.
        first = [] if total is None else tf.nest.flatten(local(total), expand_composites=True)
        with tf.control_dependencies(first):
            vector, gradients, summaries = once(batch, share, more)
        each.append(summaries)
        found = (vector, gradients)
        total = found if total is None else strategy.run(add, args=(total, found))
    assert backward.report is not None
    merged = [
        [one for summaries in each for one in local(summaries[name])]
        for name in backward.report.summaries
    ]
    return *total, merged


def apply(
    strategy: tf.distribute.Strategy,
    gradients: Any,
    groups: Sequence[Group],
    variables: Sequence[list[Any]],
    after: tf.Tensor,
    *,
    fused_adam: bool,
) -> None:
    """Lets every group's optimizer update its variables.

    Args:
      gradients: PerReplica, reduced.
      groups: the due ones.
      variables: for each, those that the gradients are of.
      after: a tensor that must be computed before anything is changed.
      fused_adam: whether an optimizer may be one op a variable (`tfloss.optimizers.fused_adam`).
    """

    def replica(gradients):
        for group, mine, each in zip(groups, variables, gradients, strict=True):
            optimizer = group.optimizer
            with _upstream.gradients_already_reduced(optimizer):
                counted = _besides_gradients(optimizer)
                if counted is not None:
                    with tf.control_dependencies([after]):
                        each = [tf.identity(gradient) for gradient in each]
                        for variable in counted:  # what reads it comes later than this
                            variable.assign(variable)
                    optimizer.apply(each, mine)
                else:
                    with tf.control_dependencies([after]):
                        optimizer.apply(each, mine)

    with contextlib.ExitStack() as stack:
        for group in groups if fused_adam else ():
            stack.enter_context(fused_updates(group.optimizer))
        strategy.run(replica, args=(gradients,))


def read_states(strategy: tf.distribute.Strategy, states: Callable[[], list[Any]]) -> Any:
    """PerReplica copies of variables, as they are at this point of the trace."""
    return strategy.run(lambda: [tf.identity(state) for state in states()])


def restore_states(
    strategy: tf.distribute.Strategy, states: Callable[[], list[Any]], before: Any
) -> None:
    """Assigns what `read_states` read."""

    def replica(values):
        for state, value in zip(states(), values, strict=True):
            state.assign(value)

    strategy.run(replica, args=(before,))


def _besides_gradients(optimizer: Any) -> list[Any] | None:
    """The variables from which, with the gradients, `apply` computes whatever it assigns.

    Then it is enough that those wait. Where all that `apply` adds to the graph waits, each read
    and constant has a control edge, which a step of many small variables takes time for.

    Returns:
      The iterations, which a schedule is computed from, and the rate that decays the weights;
      None where something else moves too (averages), or may (a rate that the user wrote).
    """
    if type(optimizer) not in _MOVED_BY_GRADIENTS_AND_RATE or optimizer.use_ema:
        return None
    if optimizer.weight_decay is None:
        return [optimizer.iterations]
    rate = _upstream.configured_learning_rate(optimizer)
    if type(rate) in _COMPUTED_FROM_ITERATIONS:
        return [optimizer.iterations]
    return [optimizer.iterations, rate] if isinstance(rate, keras.Variable) else None


def _scaled(gradient: Any, factor: tf.Tensor) -> Any:
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(gradient.values * factor, gradient.indices, gradient.dense_shape)
    return gradient * factor


def _merged(gradient: Any) -> Any:
    """An embedding's gradient with each row once: a norm of repeated rows is too small."""
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    rows, place = tf.unique(gradient.indices)
    values = tf.math.unsorted_segment_sum(gradient.values, place, tf.size(rows))
    return tf.IndexedSlices(values, rows, gradient.dense_shape)


def _added(a: Any, b: Any) -> Any:
    if isinstance(a, tf.IndexedSlices):
        return tf.IndexedSlices(
            tf.concat([a.values, b.values], 0),
            tf.concat([a.indices, b.indices], 0),
            a.dense_shape,
        )
    return a + b
