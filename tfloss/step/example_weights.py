"""The example weights of a step: what each replica and micro-batch counts in the objective.

Cross-replica, traced.
"""

from typing import Any

import tensorflow as tf

from tfloss.data.batch_division import assert_comparable
from tfloss.data.batch_layout import ROWS_ARE_EXAMPLES, BatchLayout
from tfloss.data.batches import MicroBatches


def example_weights(
    strategy: tf.distribute.Strategy,
    micro_batches: MicroBatches,
    layout: BatchLayout = ROWS_ARE_EXAMPLES,
) -> list[Any]:
    """For each micro-batch, the fraction of the step's examples that each replica has of it.

    All weights of a step sum to 1.

    Args:
      strategy: The strategy that the step runs under.
      micro_batches: The batches of the step.
      layout: What counts as an example.

    Returns:
      Floats if the numbers of examples are known statically (then they are the same on all
      replicas), or can't be known (then all weights are equal); otherwise PerReplica scalars.

    Raises:
      DataError: It is unclear how much each micro-batch counts.
    """
    replicas, many = strategy.num_replicas_in_sync, len(micro_batches)
    if replicas == 1 and many == 1:
        return [1.0]
    here = [strategy.experimental_local_results(batch)[0] for batch in micro_batches]
    sizes = [layout.sizes(batch) for batch in here]
    if not all(sizes):
        return [1.0 / (replicas * many)] * many
    if all(isinstance(size, int) for one in sizes for size in one.values()):
        assert_comparable(layout, sizes)
        numbers = [layout.count_of(one) for one in sizes]
        total = replicas * sum(numbers)
        return [number / total for number in numbers]

    def replica(*mine: Any) -> list[tf.Tensor]:
        sizes = [layout.sizes(one) for one in mine]
        # Over several replicas, the data are divided only if first dimensions are equal.
        checks = assert_comparable(layout, sizes) if replicas == 1 else []
        each = [tf.cast(layout.count_of(one), tf.float32) for one in sizes]
        with tf.control_dependencies(checks):
            total = tf.add_n(each)
        if replicas > 1:
            context = tf.distribute.get_replica_context()
            total = context.all_reduce(tf.distribute.ReduceOp.SUM, total)
        return [one / total for one in each]

    return list(strategy.run(replica, args=tuple(micro_batches)))
