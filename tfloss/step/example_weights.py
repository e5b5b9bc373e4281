"""The example weights of a step: what each replica and micro-batch counts in the objective.

Cross-replica, traced.
"""

from typing import Any

import tensorflow as tf

from tfloss.data import batches
from tfloss.data.batches import MicroBatches


def example_weights(strategy: tf.distribute.Strategy, micro_batches: MicroBatches) -> list[Any]:
    """For each micro-batch, the fraction of the step's examples that each replica has of it.

    All weights of a step sum to 1.

    Args:
      strategy: The strategy that the step runs under.
      micro_batches: The batches of the step.

    Returns:
      Floats if the numbers of examples are known statically (then they are the same on all
      replicas), or can't be known (then all weights are equal); otherwise PerReplica scalars.
    """
    replicas, many = strategy.num_replicas_in_sync, len(micro_batches)
    if replicas == 1 and many == 1:
        return [1.0]
    here = [strategy.experimental_local_results(batch)[0] for batch in micro_batches]
    numbers = [batches.count(batch) for batch in here]
    if any(number is None for number in numbers):
        return [1.0 / (replicas * many)] * many
    if all(isinstance(number, int) for number in numbers):
        total = replicas * sum(numbers)
        return [number / total for number in numbers]

    def replica(*mine: Any) -> list[tf.Tensor]:
        each = [tf.cast(batches.count(one), tf.float32) for one in mine]
        total = tf.add_n(each)
        if replicas > 1:
            context = tf.distribute.get_replica_context()
            total = context.all_reduce(tf.distribute.ReduceOp.SUM, total)
        return [one / total for one in each]

    return list(strategy.run(replica, args=tuple(micro_batches)))
