"""Stops training before an update whose losses are not finite, and keeps the evidence.

Traced where the step is a graph; on the host where the whole loop is compiled (`compiled_loop`).
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfloss.data.batches import MicroBatches
from tfloss.distribute.strategy import worker_position
from tfloss.errors import NonFiniteLossError
from tfloss.step.train_step import TrainStep

_OTHERS_SECONDS = 1.0


class FiniteGuard:
    """Aborts a step before its update when a loss is not finite, and keeps the batch.

    An assertion in the graph costs 1 % or less while it holds; a `tf.cond` around the update
    costs 6 to 28 % of a step of small kernels (benchmarks/guard.py).

    Attributes:
      found: the error to raise, if the assertion has failed.
    """

    def __init__(self, train_step: TrainStep):
        self._step = train_step
        self._before: list[np.ndarray] = []
        self.found: NonFiniteLossError | None = None

    def states(self) -> list[Any]:
        """What a forward pass may change: statistics, counters, metrics, random states."""
        model = self._step.model
        others = [one for one in model.variables if not one.trainable]
        return [one.value for one in (*others, *model.metrics_variables)]

    def restore(self) -> None:
        """Puts those back to what they were when the bad step began. Host code."""
        local = self._step.strategy.experimental_local_results
        variables = [one for state in self.states() for one in local(state)]
        for variable, value in zip(variables, self._before, strict=True):
            variable.assign(value)

    def __call__(
        self,
        names: Sequence[str],
        values: tf.Tensor,
        micro: MicroBatches,
        before: list[Any],
        tolerated: tf.Tensor | None,
    ) -> tf.Tensor:
        """Traced: an assertion that all values are finite; keeps the evidence if not.

        Args:
          names: of the values.
          values: float32 [names], the same on all replicas.
          micro: the step's batches, of all replicas.
          before: PerReplica values of `states()` when the step began.
          tolerated: bool scalar, whether values that are not finite are let pass.
        """
        finite = tf.reduce_all(tf.math.is_finite(values))
        if tolerated is not None:
            finite |= tolerated
        results = self._step.strategy.experimental_local_results
        by_batch = [results(one) for one in micro]
        states = [one for value in before for one in results(value)]
        # Replica by replica, and in each the micro-batches in order.
        local = [one for replica in zip(*by_batch, strict=True) for one in replica]
        flat = tf.nest.flatten(local, expand_composites=True)
        there = [part for part in flat if part is not None]  # tf.data lets None through

        def keep(values, step, *parts):
            self._before = [np.array(part) for part in parts[: len(states)]]
            tensors = (tf.convert_to_tensor(part) for part in parts[len(states) :])
            leaves = [None if part is None else next(tensors) for part in flat]
            whole = tf.nest.pack_sequence_as(local, leaves, expand_composites=True)
            losses = dict(zip(names, values.tolist(), strict=True))
            self.found = NonFiniteLossError(int(step) + 1, losses, tuple(whole))
            if worker_position(self._step.strategy)[1] > 1:
                # The failed assertion cuts off this worker's part of what others still receive.
                # They find the same a moment later.
                time.sleep(_OTHERS_SECONDS)
            return np.bool_(False)

        kept = tf.cond(
            finite,
            lambda: tf.constant(True),
            lambda: tf.ensure_shape(
                tf.numpy_function(keep, [values, self._step.counter, *states, *there], tf.bool),
                [],
            ),
        )
        return tf.debugging.Assert(kept, ["A loss is not finite."])
