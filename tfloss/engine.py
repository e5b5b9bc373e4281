"""Runs a training step K times in one call of a `tf.function`. Host code around traced code.

    block = engine.run(iterator, 100, recording=False)
    block.names, block.values            # ["losses/total", ...], float32 [100, names]

Every step's scalars leave the call in one buffer, so nothing is synchronised in between.
There are two traces: a silent one, which loops, and a recording one of a single step, which
also returns the model's summaries.
"""

import dataclasses
import time
from typing import Any

import numpy as np
import tensorflow as tf

from tfloss import _upstream
from tfloss.backward import state_variables
from tfloss.batches import MicroBatches
from tfloss.distribution import worker_position
from tfloss.errors import LossError, NonFiniteLossError, TflossError
from tfloss.report import StepOutput
from tfloss.step import TrainStep
from tfloss.summary import Summary, on_host
from tfloss.xla import uncompilable

_OTHERS_SECONDS = 1.0
# What a step that XLA can't compile may fail with.
_COMPILERS = (
    tf.errors.InvalidArgumentError,
    tf.errors.UnimplementedError,
    tf.errors.InternalError,
)


@dataclasses.dataclass(frozen=True)
class Block:
    """What a number of consecutive steps reported.

    Attributes:
      first: the number of updates completed before the block.
      names: tags of the columns.
      values: float32 [steps, names], on the device until somebody looks.
      summaries: of the last step, if it was recorded.
    """

    first: int
    names: tuple[str, ...]
    values: Any
    summaries: tuple[Summary, ...] = ()

    def rows(self) -> np.ndarray:
        """The values on the host: float32 [steps, names]."""
        return np.asarray(self.values)


class Engine:
    """Calls a `TrainStep` in a loop on the device.

    Args:
      train_step: a built step.
      every_step: also compute the model's scalar summaries on every step.
      guard: stop before an update whose losses are not finite.

    Raises (from `run`):
      tf.errors.OutOfRangeError: the data ended; `train_step.counter` says after how many.
      NonFiniteLossError: a loss is NaN or infinite (if guarded).
    """

    def __init__(self, train_step: TrainStep, *, every_step: bool = False, guard: bool = True):
        self._step = train_step
        self._every_step = every_step
        self._guard = _FiniteGuard(train_step) if guard else None
        train_step.guard = self._guard
        self._names: dict[bool, tuple[str, ...]] = {}
        self._recorded: list[Any] = []
        self.traces = 0
        self._silent = tf.function(self._loop, autograph=False)
        self._recording = tf.function(self._one, autograph=False)

    def run(self, iterator: Any, steps: int, *, recording: bool = False) -> Block:
        """Runs `steps` steps in one call; with `recording`, exactly one.

        Args:
          iterator: of a `tf.data.Dataset` or a distributed one.
          steps: how many; any number without a new trace.
          recording: whether the step returns its summaries.
        """
        if recording and steps != 1:
            raise ValueError(f"A recording call runs one step, got steps={steps}.")
        first = int(self._step.counter.numpy())
        if self._guard is not None:
            self._guard.found = None
        try:
            if recording:
                values, tensors = self._recording(iterator)
                summaries = on_host(self._recorded, tensors)
            else:
                values, summaries = self._silent(iterator, tf.constant(steps)), ()
        except tf.errors.OpError as error:
            # Other ops that the failed assertion has cut off may be named in its place.
            if self._guard is not None and self._guard.found is not None:
                self._guard.restore()
                raise self._guard.found from None
            if isinstance(error, tf.errors.OutOfRangeError):
                raise
            if not isinstance(error, _COMPILERS):
                raise _upstream.innermost(error, TflossError) from None
            raise _with_jit_advice(error, self._step.compiled) from None
        except Exception as error:
            raise _upstream.innermost(error, TflossError) from None
        return Block(first, self._names[recording], values, summaries)

    def _loop(self, iterator: Any, steps: tf.Tensor) -> tf.Tensor:
        """Traced: the silent steps."""

        def body(i, rows):
            output = self._step(self._step.take(iterator), recording=self._every_step)
            return i + 1, rows.write(i, self._row(output, recording=False))

        rows = tf.TensorArray(tf.float32, size=steps, element_shape=[None])
        _, rows = tf.while_loop(lambda i, rows: i < steps, body, [0, rows], parallel_iterations=1)
        self.traces += 1
        return rows.stack()

    def _one(self, iterator: Any) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Traced: one recording step."""
        output = self._step(self._step.take(iterator), recording=True)
        self._recorded = output.summaries
        row = self._row(output, recording=True)
        self.traces += 1
        return row[tf.newaxis], [one.value for one in output.summaries]

    def _row(self, output: StepOutput, recording: bool) -> tf.Tensor:
        names = tuple(output.scalars)
        before = self._names.setdefault(recording, names)
        if before != names:
            raise LossError(
                "The losses differ between two traces of the step (batches of different "
                f"shapes?): {', '.join(before)}, then {', '.join(names)}. Report the same "
                "losses for every shape."
            )
        return tf.stack(list(output.scalars.values()))


class _FiniteGuard:
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
        """What a forward pass changes: statistics, random states."""
        model = self._step.model
        seeds = [state.value for _, state in _upstream.seed_states(model)]
        return state_variables(model) + seeds

    def restore(self) -> None:
        """Puts those back to what they were when the bad step began. Host code."""
        local = self._step.strategy.experimental_local_results
        variables = [one for state in self.states() for one in local(state)]
        for variable, value in zip(variables, self._before, strict=True):
            variable.assign(value)

    def __call__(
        self,
        watched: dict[str, tf.Tensor],
        micro: MicroBatches,
        before: list[Any],
        tolerated: tf.Tensor | None,
    ) -> tf.Tensor:
        """Traced: an assertion that all values are finite; keeps the evidence if not.

        Args:
          watched: `{name: value}`, the same on all replicas.
          micro: the step's batches, of all replicas.
          before: PerReplica values of `states()` when the step began.
          tolerated: bool scalar, whether values that are not finite are let pass.
        """
        names = list(watched)
        values = tf.stack(list(watched.values()))
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


def _with_jit_advice(error: Exception, compiled: tf.Graph | None) -> Exception:
    if compiled is None:
        return error
    ops = uncompilable(compiled)
    if ops:
        error.add_note(
            f"The step was compiled with XLA (jit=True), which knows no {'; no '.join(ops)}. Do it "
            "in the data set, or train with jit=False."
        )
    else:
        error.add_note(
            "The step was compiled with XLA (jit=True). If the message is about compilation "
            "(a shape that isn't static, most likely), train with jit=False."
        )
    return error
