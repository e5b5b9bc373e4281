"""Stops training before an update whose losses are not finite, and keeps the bad batch.

It is traced code, for the modes "graph" and "step". A compiled loop is watched from the host
(`tfloss.engine.xla_loop`).
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
from tfloss.step.update import read_states
from tfloss.step.variables import forward_state

_SECONDS_FOR_OTHER_WORKERS = 1.0


class FiniteGuard:
    """Aborts a step before its update when a loss is not finite, and keeps the batch.

    An assertion in the graph costs 1 % or less while it holds; a `tf.cond` around the update
    costs 6 to 28 % of a step of small kernels (benchmarks/guard.py).

    Args:
      train_step: The step whose state is restored.
    """

    def __init__(self, train_step: TrainStep):
        self._step = train_step
        self._before: list[np.ndarray] = []
        self._error: NonFiniteLossError | None = None

    def snapshot(self) -> list[Any]:
        """Reads what a forward pass may change. Cross-replica code, traced.

        Returns:
          PerReplica copies of the variables.
        """
        return read_states(
            self._step.strategy, lambda: forward_state(self._step.model, self._step.strategy)
        )

    @property
    def failed(self) -> bool:
        """Whether a check has failed since the last call of `raise_error`."""
        return self._error is not None

    def raise_error(self) -> None:
        """Raises the error of a check that has failed since the last call. Host code.

        The state that the forward pass of the bad step changed is restored.

        Raises:
          NonFiniteLossError: A check has failed.
        """
        error, self._error = self._error, None
        if error is None:
            return
        local = self._step.strategy.experimental_local_results
        variables = [
            one
            for state in forward_state(self._step.model, self._step.strategy)
            for one in local(state)
        ]
        for variable, value in zip(variables, self._before, strict=True):
            variable.assign(value)
        raise error from None

    def __call__(
        self,
        names: Sequence[str],
        values: tf.Tensor,
        micro_batches: MicroBatches,
        before: list[Any],
        tolerated: tf.Tensor | None,
    ) -> tf.Tensor:
        """Asserts that all values are finite; keeps the batch if not. Cross-replica code, traced.

        Args:
          names: Names of the values, for the error message.
          values: float32 [names], the same on all replicas.
          micro_batches: The batches of the step, of all replicas.
          before: PerReplica values that `snapshot` read when the step began.
          tolerated: bool scalar; if it is true, the check passes in any case. None: false.

        Returns:
          The assertion.
        """
        finite = tf.reduce_all(tf.math.is_finite(values))
        if tolerated is not None:
            finite |= tolerated
        results = self._step.strategy.experimental_local_results
        by_batch = [results(one) for one in micro_batches]
        states = [one for value in before for one in results(value)]
        # Replica by replica, and in each the micro-batches in order.
        local = [one for replica in zip(*by_batch, strict=True) for one in replica]
        flat = tf.nest.flatten(local, expand_composites=True)
        there = [part for part in flat if part is not None]  # tf.data lets None through

        def keep(values: np.ndarray, step: np.ndarray, *parts: Any) -> np.bool_:
            self._before = [np.array(part) for part in parts[: len(states)]]
            tensors = (tf.convert_to_tensor(part) for part in parts[len(states) :])
            leaves = [None if part is None else next(tensors) for part in flat]
            evidence = tf.nest.pack_sequence_as(local, leaves, expand_composites=True)
            losses = dict(zip(names, values.tolist(), strict=True))
            self._error = NonFiniteLossError(int(step) + 1, losses, tuple(evidence))
            if worker_position(self._step.strategy)[1] > 1:
                # The failed assertion ends the transfers that other workers still wait for. They
                # find the same loss a moment later.
                time.sleep(_SECONDS_FOR_OTHER_WORKERS)
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
