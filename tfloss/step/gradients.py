"""The gradients of a step: each replica's, summed over micro-batches. Cross-replica, traced."""

import dataclasses
from typing import Any

import tensorflow as tf

from tfloss.data.batches import MicroBatches
from tfloss.step.backward import Backward, BackwardTrace, Gradients
from tfloss.step.normalisers import NormaliserSums
from tfloss.step.traced_calls import split_static


@dataclasses.dataclass(frozen=True)
class StepGradients:
    """What the forward and backward passes of a step gave, before any reduction over replicas.

    Attributes:
      vector: PerReplica float32 [n]; `BackwardTrace.spec` describes it.
      gradients: PerReplica `Gradients`.
      summaries: `{name: its tensor of each replica and micro-batch}`.
      trace: What is known of them at trace time.
    """

    vector: Any
    gradients: Any
    summaries: dict[str, list[tf.Tensor]]
    trace: BackwardTrace


def accumulate(
    strategy: tf.distribute.Strategy,
    backward: Backward,
    micro_batches: MicroBatches,
    weights: list[Any],
    *,
    step: tf.Tensor,
    scale: tf.Tensor | None,
    normalisers: NormaliserSums | None,
) -> StepGradients:
    """Runs every micro-batch and sums what they give.

    Args:
      strategy: The strategy that the step runs under.
      backward: The pass over one micro-batch.
      micro_batches: The batches of the step.
      weights: Example weight of each micro-batch: a float or PerReplica scalars.
      step: int64 scalar, the number of completed updates.
      scale: float32 scalar by which the objective is multiplied, or None.
      normalisers: Global sums for `global_mean`, or None.
    """
    sums = None if normalisers is None else normalisers.sums
    several = strategy.num_replicas_in_sync > 1

    def replica(batch: Any, weight: Any, step: tf.Tensor, scale: Any, sums: Any) -> Any:
        given = None if normalisers is None else dataclasses.replace(normalisers, sums=sums)
        # The threads of several replicas don't take over the dependencies of the step, that on
        # its batch above all.
        with tf.control_dependencies([step] if several else []):
            return backward(batch, step, weight, scale, given)

    tensors_only, traces = split_static(replica)

    def once(batch: Any, weight: Any, *rest: Any) -> Any:
        return strategy.run(tensors_only, args=(batch, weight, *rest))

    if len(micro_batches) > 1:
        once = tf.function(once, autograph=False)  # traced once for all
    local = strategy.experimental_local_results
    total: Any = None
    each: list[Any] = []
    for batch, weight in zip(micro_batches, weights, strict=True):
        # One after the other, so that only one of them holds its activations.
        first = [] if total is None else tf.nest.flatten(local(total), expand_composites=True)
        with tf.control_dependencies(first):
            vector, gradients, summaries = once(batch, weight, step, scale, sums)
        each.append(summaries)
        found = (vector, gradients)
        total = found if total is None else strategy.run(_add, args=(total, found))
    trace = traces[-1]
    merged = {
        name: [one for summaries in each for one in local(summaries[name])]
        for name in trace.spec.summaries
    }
    vector, gradients = total
    return StepGradients(vector, gradients, merged, trace)


def _add(one: Any, other: Any) -> Any:
    """Adds vectors and gradients; takes the maximum of overwriting values. Replica code, traced."""
    (vector, gradients), (vector2, gradients2) = one, other
    return vector + vector2, Gradients(
        tf.nest.map_structure(_added, gradients.weights, gradients2.weights),
        tf.nest.map_structure(tf.maximum, gradients.overwriting, gradients2.overwriting),
        tf.nest.map_structure(_added, gradients.by_loss, gradients2.by_loss),
    )


def _added(a: Any, b: Any) -> Any:
    """The sum; of float16 and bfloat16 in float32, so that many micro-batches lose no digits."""
    if isinstance(a, tf.IndexedSlices):
        return tf.IndexedSlices(
            tf.concat([a.values, b.values], 0),
            tf.concat([a.indices, b.indices], 0),
            a.dense_shape,
        )
    if b.dtype.size < tf.float32.size:
        a, b = tf.cast(a, tf.float32), tf.cast(b, tf.float32)
    return a + b
