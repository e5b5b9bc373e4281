"""The sums that `tfloss.global_mean` divides by, found before the forward pass that needs them.

A forward pass that XLA compiles can't stop to reduce over replicas, and the first micro-batch
can't know what the others hold. So the forward pass is traced once more, for these sums only;
TensorFlow and XLA prune the rest of it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.data.batches import MicroBatches
from tfloss.errors import LossError
from tfloss.forward.context import forward_context
from tfloss.forward.global_batch import CountingNormalisers
from tfloss.forward.reachability import gradient_reaches
from tfloss.inspect.source_lines import op_line
from tfloss.inspect.traced_ops import operations
from tfloss.step.random_states import drawn_states
from tfloss.step.traced_calls import compiled, split_static


@dataclasses.dataclass(frozen=True)
class NormaliserSums:
    """The global sums of every `global_mean` of a forward pass, in the order of the calls.

    Attributes:
      sums: float32 [n, 2]: the sum of the values, the sum of the weights. The former is 0 where
        it is not needed.
      learned: For each call, whether its weights depend on trainable variables.
    """

    sums: tf.Tensor
    learned: Sequence[bool]


@dataclasses.dataclass(frozen=True)
class NormaliserPass:
    """Runs a forward pass for its normalisers only. It changes no state.

    Attributes:
      model: The model whose state is kept.
      forward: Replica code; takes this replica's batch.
      variables: All variables that are trained.
      jit: Whether XLA compiles the pass.
    """

    model: keras.Model
    forward: Callable[[Any], Any]
    variables: Sequence[Any]
    jit: bool

    def global_sums(
        self, strategy: tf.distribute.Strategy, micro_batches: MicroBatches, step: tf.Tensor
    ) -> NormaliserSums | None:
        """Sums over all replicas and micro-batches. Cross-replica code, traced.

        Args:
          strategy: The strategy that the step runs under.
          micro_batches: The batches of the step.
          step: int64 scalar, the number of completed updates.

        Returns:
          The sums; None if the forward pass doesn't call `global_mean`.
        """
        local_sums, learned = split_static(self._local_sums)

        def once(batch: Any, step: tf.Tensor, seeds: Any) -> Any:
            return strategy.run(local_sums, args=(batch, step, seeds))

        if len(micro_batches) > 1:
            once = tf.function(once, autograph=False)
        seeds = strategy.run(self._seed_states)
        total: Any = None
        for batch in micro_batches:
            sums, seeds = once(batch, step, seeds)
            total = sums if total is None else strategy.run(tf.add, args=(total, sums))
        local = strategy.experimental_local_results
        if not learned[-1]:
            return None
        if strategy.num_replicas_in_sync > 1:
            total = strategy.run(_sum_over_replicas, args=(total,))
        return NormaliserSums(local(total)[0], learned[-1])

    def _seed_states(self) -> list[tf.Tensor]:
        """Reads the random states of this replica. Replica code, traced."""
        return [tf.identity(state.value) for state in drawn_states(self.model)]

    def _local_sums(
        self, batch: Any, step: tf.Tensor, seeds: list[tf.Tensor]
    ) -> tuple[tuple[tf.Tensor, list[tf.Tensor]], list[bool]]:
        """One pass over this replica's batch. Replica code, traced.

        Args:
          batch: This replica's batch.
          step: int64 scalar, the number of completed updates.
          seeds: Random states at the beginning of this pass.

        Returns:
          float32 [n, 2] sums and the random states after the pass; `NormaliserSums.learned`.
        """

        def compute(batch: Any, step: tf.Tensor, seeds: list[tf.Tensor]) -> Any:
            counting = CountingNormalisers(gradient_reaches(self.variables))
            states = drawn_states(self.model)
            scope = keras.StatelessScope(state_mapping=list(zip(states, seeds, strict=True)))
            with scope, _upstream.inputs_untouched(self.model):
                with forward_context(step, False, normalisers=counting):
                    self.forward(batch)
            _check_pure(tf.compat.v1.get_default_graph())
            after = [scope.get_current_value(state) for state in states]
            sums = tf.stack(counting.sums) if counting.sums else tf.zeros([0, 2])
            kept = [old if new is None else new for new, old in zip(after, seeds, strict=True)]
            return (sums, kept), counting.learned

        tensors_only, learned = split_static(compute)
        run = compiled(tensors_only) if self.jit else tensors_only
        return run(batch, step, seeds), learned[-1]


def _sum_over_replicas(value: tf.Tensor) -> tf.Tensor:
    """Replica code, traced."""
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def _check_pure(graph: tf.Graph) -> None:
    """Raises LossError if a forward pass that must change nothing assigns a variable."""
    for op, _ in operations(graph):
        state = _upstream.op_state(op)
        if state in _CHANGES:
            raise LossError(
                f"The training forward {_CHANGES[state]} ({op.type}, {op_line(op)}). Where "
                "gradients are accumulated, or compiled on several replicas, the forward pass runs "
                "a second time to find the sums of global_mean, and must not change anything then. "
                "Keep state in variables made with add_weight(trainable=False), which are "
                "protected. A Python function that changes nothing is declared so: "
                "tf.numpy_function(..., stateful=False)."
            )


_CHANGES = {
    "variable": "assigns a tf.Variable",
    "table": "changes a table",
    "resource": "changes a queue, an iterator or the like",
    "python": "calls a Python function that may have state",
}
