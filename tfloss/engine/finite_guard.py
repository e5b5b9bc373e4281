"""Stops training before an update that is not finite, keeps the bad batch, and names the culprits.

It is traced code, for the modes "graph" and "step". A compiled loop is watched from the host
(`tfloss.engine.xla_loop`).
"""

import dataclasses
import time
from typing import Any

import numpy as np
import tensorflow as tf

from tfloss.checkpoint import nonfinite_variables
from tfloss.data.batches import MicroBatches
from tfloss.distribute.strategy import worker_position
from tfloss.errors import NonFiniteGradient, NonFiniteLossError
from tfloss.step.backward import Backward
from tfloss.step.finite_check import FiniteCheck
from tfloss.step.loss_gradients import find_nonfinite
from tfloss.step.train_step import TrainStep
from tfloss.step.update import read_states
from tfloss.step.variables import forward_state

SCOPE = "tfloss_finite_guard"  # begins the names of its ops
_SECONDS_FOR_OTHER_WORKERS = 1.0


@dataclasses.dataclass(frozen=True)
class _Failure:
    """A step whose check has failed.

    Attributes:
      step: Number of completed updates.
      check: The check.
      values: Values of its losses, then of its gradients.
      backward: The pass that computed them.
      evidence: The batches, replica by replica, and in each the micro-batches in order.
      before: The variables that the forward pass changes, and their values before it.
      start: All variables, and their values before the step; empty if they have not changed.
    """

    step: int
    check: FiniteCheck
    values: list[float]
    backward: Backward
    evidence: tuple[Any, ...]
    before: list[tuple[Any, np.ndarray]]
    start: list[tuple[Any, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class _Snapshot:
    """What was read at a point of a trace. Variables may be created later, which it lacks.

    Attributes:
      variables: The variables of each replica.
      values: Their values, as tensors.
    """

    variables: list[Any]
    values: list[tf.Tensor]


class FiniteGuard:
    """Aborts a step before its update when a loss or gradient is not finite, and keeps the batch.

    An assertion in the graph costs 1 % or less while it holds; a `tf.cond` around the update
    costs 6 to 28 % of a step of small kernels (benchmarks/guard.py).

    Args:
      train_step: The step whose state is restored.
    """

    def __init__(self, train_step: TrainStep):
        self._step = train_step
        self._failure: _Failure | None = None

    def snapshot(self) -> _Snapshot:
        """Reads what a forward pass may change. Cross-replica code, traced."""
        return self._read(forward_state(self._step.model, self._step.strategy))

    def snapshot_all(self) -> _Snapshot:
        """Reads what a step may change that updates more than once. Cross-replica code, traced."""
        return self._read(self._step.state())

    def _read(self, variables: list[Any]) -> _Snapshot:
        local = self._step.strategy.experimental_local_results
        values = read_states(self._step.strategy, lambda: variables)
        # A variable that was made outside of the strategy's scope is one for all replicas.
        pairs = [
            pair
            for variable, value in zip(variables, values, strict=True)
            for pair in zip(local(variable), local(value), strict=False)
        ]
        return _Snapshot([one for one, _ in pairs], [value for _, value in pairs])

    @property
    def failed(self) -> bool:
        """Whether a check has failed since the last call of `raise_error`."""
        return self._failure is not None

    def raise_error(self) -> None:
        """Raises the error of a check that has failed since the last call. Host code.

        The state is restored to that before the bad step.

        Raises:
          NonFiniteLossError: A check has failed.
        """
        failure, self._failure = self._failure, None
        if failure is None:
            return
        check = failure.check
        losses = dict(zip(check.losses, failure.values, strict=False))
        gradients: tuple[NonFiniteGradient, ...] = ()
        _restore(failure.before)
        if np.isfinite(list(losses.values())).all():
            gradients = self._culprits(failure)
            _restore(failure.before)
        _restore(failure.start)
        error = NonFiniteLossError(
            failure.step + 1,
            losses,
            failure.evidence,
            gradients=gradients,
            weights=tuple(nonfinite_variables(self._step.model)),
        )
        for name, note in check.notes.items():
            if not np.isfinite(losses[name]):
                error.add_note(note)
        raise error from None

    def _culprits(self, failure: _Failure) -> tuple[NonFiniteGradient, ...]:
        """Finds the gradients that are not finite, by another forward pass over the batch."""
        count = len(failure.check.losses)
        values = zip(failure.check.groups, failure.values[count:], strict=True)
        groups = [group for group, value in values if not np.isfinite(value)]
        unknown = tuple(NonFiniteGradient(group) for group in groups)
        if worker_position(self._step.strategy)[1] > 1:
            return unknown  # the failed assertion has ended the transfers between workers
        many = len(failure.evidence) // self._step.strategy.num_replicas_in_sync
        try:
            return find_nonfinite(
                self._step.strategy, failure.backward, failure.evidence, many, failure.step, groups
            )
        except Exception:  # noqa: BLE001 - training ends with its own error
            return unknown

    def __call__(
        self,
        check: FiniteCheck,
        micro_batches: MicroBatches,
        before: _Snapshot,
        start: _Snapshot | None,
        backward: Backward,
    ) -> tf.Tensor:
        """Asserts that a check passes; keeps the batch if not. Cross-replica code, traced.

        Args:
          check: The values, and whether the check passes.
          micro_batches: The batches of the step, of all replicas.
          before: What `snapshot` read before the forward pass.
          start: What `snapshot_all` read when the step began, or None.
          backward: The pass that computed the values.

        Returns:
          The assertion.
        """
        results = self._step.strategy.experimental_local_results
        by_batch = [results(one) for one in micro_batches]
        read = [before] if start is None else [before, start]
        variables = [one for each in read for one in each.variables]
        states = [one for each in read for one in each.values]
        count = len(before.variables)
        # Replica by replica, and in each the micro-batches in order.
        local = [one for replica in zip(*by_batch, strict=True) for one in replica]
        flat = tf.nest.flatten(local, expand_composites=True)
        there = [part for part in flat if part is not None]  # tf.data lets None through

        def keep(losses: np.ndarray, step: np.ndarray, *parts: Any) -> np.bool_:
            values, parts = parts[: len(check.gradients)], parts[len(check.gradients) :]
            arrays = [np.array(part) for part in parts[: len(states)]]
            kept = list(zip(variables, arrays, strict=True))
            tensors = (tf.convert_to_tensor(part) for part in parts[len(arrays) :])
            leaves = [None if part is None else next(tensors) for part in flat]
            evidence = tf.nest.pack_sequence_as(local, leaves, expand_composites=True)
            self._failure = _Failure(
                int(step),
                check,
                [*losses.tolist(), *map(float, values)],
                backward,
                tuple(evidence),
                before=kept[:count],
                start=kept[count:],
            )
            if worker_position(self._step.strategy)[1] > 1:
                # The failed assertion ends the transfers that other workers still wait for. They
                # find the same loss a moment later.
                time.sleep(_SECONDS_FOR_OTHER_WORKERS)
            return np.bool_(False)

        inputs = [check.values, self._step.counter, *check.gradients, *states, *there]
        with tf.name_scope(SCOPE):
            kept = tf.cond(
                check.passed,
                lambda: tf.constant(True),
                # Declared as stateless: a stateful function would be reported as state that no
                # checkpoint holds. It is called once, and the assertion needs its result.
                lambda: tf.ensure_shape(
                    tf.numpy_function(keep, inputs, tf.bool, stateful=False), []
                ),
            )
            return tf.debugging.Assert(kept, ["A loss or a gradient is not finite."])


def _restore(values: list[tuple[Any, np.ndarray]]) -> None:
    """Assigns what a snapshot read."""
    for variable, value in values:
        variable.assign(value)
