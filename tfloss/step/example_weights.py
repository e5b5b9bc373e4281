"""What each replica and micro-batch counts in a step, and the sums they must agree on first.

Cross-replica, traced: before the forward passes whose losses they go into.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.data import batches
from tfloss.data.batches import MicroBatches


def shares(strategy: tf.distribute.Strategy, micro: MicroBatches) -> list[Any]:
    """For each micro-batch, the fraction of the step's examples that each replica has of it.

    A float where the numbers of examples are known statically (then they are the same on all
    replicas), or can't be known (then all count the same); otherwise PerReplica scalars.
    """
    replicas, many = strategy.num_replicas_in_sync, len(micro)
    if replicas == 1 and many == 1:
        return [1.0]
    here = [strategy.experimental_local_results(batch)[0] for batch in micro]
    numbers = [batches.count(batch) for batch in here]
    if any(number is None for number in numbers):
        return [1.0 / (replicas * many)] * many
    if all(isinstance(number, int) for number in numbers):
        total = replicas * sum(numbers)
        return [number / total for number in numbers]

    def replica(*mine):
        each = [tf.cast(batches.count(one), tf.float32) for one in mine]
        total = tf.add_n(each)
        if replicas > 1:
            context = tf.distribute.get_replica_context()
            total = context.all_reduce(tf.distribute.ReduceOp.SUM, total)
        return [one / total for one in each]

    return list(strategy.run(replica, args=tuple(micro)))


def normaliser_sums(
    strategy: tf.distribute.Strategy,
    count: Callable[..., Any],
    model: keras.Model,
    micro: MicroBatches,
    step: tf.Tensor,
) -> tf.Tensor | None:
    """float32 [n, 2]: what `global_mean` divides by, over all replicas and micro-batches.

    None if the forward pass doesn't use it.

    Args:
      count: `Backward.count`, replica code.
    """

    def once(batch, step, seeds):
        return strategy.run(count, args=(batch, step, seeds))

    def read():
        return [tf.identity(state.value) for _, state in _upstream.seed_states(model)]

    if len(micro) > 1:
        once = tf.function(once, autograph=False)
    seeds = strategy.run(read)
    total: Any = None
    for batch in micro:
        sums, seeds = once(batch, step, seeds)
        total = sums if total is None else _added(strategy, total, sums)
    local = strategy.experimental_local_results
    if local(total)[0].shape[0] == 0:
        return None
    if strategy.num_replicas_in_sync == 1:
        return local(total)[0]

    def reduced(sums):
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, sums)

    return local(strategy.run(reduced, args=(total,)))[0]


def _added(strategy: tf.distribute.Strategy, a: Any, b: Any) -> Any:
    return strategy.run(lambda x, y: x + y, args=(a, b))
