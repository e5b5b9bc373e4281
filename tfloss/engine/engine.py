"""Runs a training step K times in one call of a `tf.function`. Host code around traced code.

    block = engine.run(iterator, 100, recording=False)
    block.names, block.values            # ["losses/total", ...], float32 [100, names]

Every step's scalars leave the call in one buffer, so nothing is synchronised in between.
There are two traces: a silent one, which loops, and a recording one of a single step, which
also returns the model's summaries.

Three modes give the same results, at speeds that depend on the model:

- "graph": TensorFlow runs each op of each step.
- "step": forward and backward pass of each replica are one XLA program.
- "loop": the whole loop is one XLA program (`compiled_loop`). It takes `BatchStacker` of batches; a
  recording step, or a batch of another size, is run as a graph.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfloss import _upstream
from tfloss.data.batch_queue import StepInputs
from tfloss.data.stacked_batches import BatchStacker, raised_by_data
from tfloss.engine.finite_guard import FiniteGuard
from tfloss.engine.xla_loop import XlaLoop
from tfloss.errors import LossError, NonFiniteLossError, TflossError
from tfloss.forward.recorded_summaries import Summary, summaries_on_host
from tfloss.inspect.determinism import add_determinism_advice
from tfloss.inspect.xla_compile_errors import add_xla_advice
from tfloss.step.output import StepOutput
from tfloss.step.train_step import TrainStep

MODES = ("graph", "step", "loop")
# What a step that XLA can't compile may fail with.
COMPILER_ERRORS = (
    tf.errors.InvalidArgumentError,
    tf.errors.UnimplementedError,
    tf.errors.InternalError,
)


@dataclasses.dataclass(frozen=True)
class StepLogs:
    """What a number of consecutive steps reported.

    Attributes:
      first: the number of updates completed before the block.
      names: tags of the columns.
      values: float32 [steps, names], on the device until somebody looks.
      summaries: of the last step, if it was recorded.
      waited: seconds in which the steps waited for their batches.
    """

    first: int
    names: tuple[str, ...]
    values: Any
    summaries: tuple[Summary, ...] = ()
    waited: Any = 0.0

    @property
    def steps(self) -> int:
        """How many there were."""
        return int(self.values.shape[0])

    def rows(self) -> np.ndarray:
        """The values on the host: float32 [steps, names]."""
        return np.asarray(self.values)


class Engine:
    """Calls a `TrainStep` in a loop on the device.

    Args:
      train_step: a built step.
      mode: one of MODES. None: "step" if the step is to be compiled, else "graph".
      log_every_step: also compute the model's scalar summaries on every step.
      guard: stop before an update whose losses are not finite.
      check: is shown the graph of each step that was traced, before it runs; it may raise.

    Raises (from `run`):
      tf.errors.OutOfRangeError, StopIteration: the data ended; `train_step.counter` says after
        how many steps.
      NonFiniteLossError: a loss is NaN or infinite (if guarded).
    """

    def __init__(
        self,
        train_step: TrainStep,
        *,
        mode: str | None = None,
        log_every_step: bool = False,
        guard: bool = True,
        check: Callable[[Any], None] = lambda graph: None,
    ):
        self.mode = mode or ("step" if train_step.jit else "graph")
        self._step = train_step
        self._every_step = log_every_step
        self._check = check
        self._guard = FiniteGuard(train_step) if guard else None
        self._names: dict[bool, tuple[str, ...]] = {}
        self._recorded: list[Any] = []
        self._dropped: bool | None = None  # whether a silent step has summaries
        self.traces = 0
        self._silent = tf.function(self._loop, autograph=False)
        self._recording = tf.function(self._one_taken, autograph=False)
        # A batch is handed over if it is of an odd size: all sizes after the first share a trace.
        self._recording_batch = tf.function(
            lambda batches: self._one(train_step.gathered(batches)),
            autograph=False,
            reduce_retracing=True,
        )
        self._silent_batch = tf.function(self._one_silent, autograph=False, reduce_retracing=True)
        self._compiled = XlaLoop(
            train_step,
            lambda output: self._row(output, recording=False),
            log_every_step=log_every_step,
            guard=guard,
        )

    def run(self, source: Any, steps: int, *, recording: bool = False) -> StepLogs:
        """Runs up to `steps` steps, and at least one; with `recording`, exactly one.

        Args:
          source: an iterator of a `tf.data.Dataset` or a distributed one, of which all of the
            steps are run; or `BatchStacker`, of whose current block they are.
          steps: how many; any number without a new trace.
          recording: whether the step returns its summaries.
        """
        if recording and steps != 1:
            raise ValueError(f"A recording call runs one step, got steps={steps}.")
        first = int(self._step.counter.numpy())
        # Another engine may have traced the same step.
        self._step.guard, self._step.jit = self._guard, self.mode == "step"
        if self._guard is not None:
            self._guard.found = None
        try:
            call = self._run_part if isinstance(source, BatchStacker) else self._run_iterator
            values, summaries, waited = call(source, steps, recording)
        except tf.errors.OpError as error:
            # Other ops that the failed assertion has cut off may be named in its place.
            if self._guard is not None and self._guard.found is not None:
                self._guard.restore()
                raise self._guard.found from None
            if isinstance(error, tf.errors.OutOfRangeError):
                raise
            if raised_by_data(source, error) or not isinstance(error, COMPILER_ERRORS):
                raise _upstream.find_cause(error, TflossError) from None
            raise self._with_advice(error) from None
        except StopIteration:
            raise
        except Exception as error:
            raise _upstream.find_cause(error, TflossError) from None
        return StepLogs(first, self._names[recording], values, summaries, waited)

    def _run_iterator(self, iterator: Any, steps: int, recording: bool) -> tuple[Any, tuple, Any]:
        if not recording:
            values, waited = self._silent(iterator, tf.constant(steps))
            return values, (), waited
        values, tensors, waited = self._recording(iterator)
        return values, summaries_on_host(self._recorded, tensors), waited

    def _run_part(
        self, blocks: BatchStacker, steps: int, recording: bool
    ) -> tuple[Any, tuple, Any]:
        before = blocks.waited
        alone = recording or self.mode != "loop"
        part = StepInputs(batches=blocks.take_step()) if alone else blocks.take(steps)
        waited = blocks.waited - before
        if recording:
            values, tensors = self._recording_batch(part.batches)
            return values, summaries_on_host(self._recorded, tensors), waited
        try:
            if part.block is None:
                return self._silent_batch(part.batches), (), waited
            values = self._compiled.run(part, lambda: self._names[False])
        except COMPILER_ERRORS:
            if self._guard is None or self._guard.found is None:
                blocks.give_back(part)
            raise
        except NonFiniteLossError:
            blocks.give_back(part, 1)
            raise
        if len(values) < part.steps:
            blocks.give_back(part, len(values))
        return values, (), waited

    def _loop(self, iterator: Any, steps: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Traced: the silent steps. Their rows, and the seconds spent on waiting for batches."""

        def body(i, rows, waited):
            batch, seconds = self._taken(iterator)
            output = self._step(batch, recording=self._every_step)
            return i + 1, rows.write(i, self._row(output, recording=False)), waited + seconds

        rows = tf.TensorArray(tf.float32, size=steps, element_shape=[None])
        start = [0, rows, tf.constant(0.0, tf.float64)]
        _, rows, waited = tf.while_loop(
            lambda i, rows, waited: i < steps, body, start, parallel_iterations=1
        )
        self.traces += 1
        return rows.stack(), waited

    def _taken(self, iterator: Any) -> tuple[Any, tf.Tensor]:
        """Traced: what a step takes, and how many seconds that took."""
        if _upstream.op_determinism_enabled():  # which refuses to look at a clock
            return self._step.take(iterator), tf.constant(0.0, tf.float64)
        began = tf.timestamp()
        with tf.control_dependencies([began]):
            batch = self._step.take(iterator)
        there = [x for x in tf.nest.flatten(batch, expand_composites=True) if x is not None]
        with tf.control_dependencies(there[-1:]):
            return batch, tf.timestamp() - began

    def _one_taken(self, iterator: Any) -> tuple[tf.Tensor, list[tf.Tensor], tf.Tensor]:
        """Traced: one recording step."""
        batch, waited = self._taken(iterator)
        return *self._one(batch), waited

    def _one(self, batch: Any) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Traced: one recording step, of what `TrainStep.take` gives."""
        output = self._step(batch, recording=True)
        self._recorded = output.summaries
        row = self._row(output, recording=True)
        self.traces += 1
        return row[tf.newaxis], [one.value for one in output.summaries]

    def _one_silent(self, batches: tuple) -> tf.Tensor:
        """Traced: one step without summaries, of batches that don't fit into a block."""
        output = self._step(self._step.gathered(batches), recording=self._every_step)
        self.traces += 1
        return self._row(output, recording=False)[tf.newaxis]

    def _row(self, output: StepOutput, recording: bool) -> tf.Tensor:
        """Traced, when a step has been."""
        self._check(tf.compat.v1.get_default_graph())
        if not recording:
            self._dropped = output.dropped
        names = tuple(output.scalars)
        before = self._names.setdefault(recording, names)
        if before != names:
            raise LossError(
                "The losses differ between two traces of the step (batches of different "
                f"shapes?): {', '.join(before)}, then {', '.join(names)}. Report the same "
                "losses for every shape."
            )
        return output.row()

    def has_summaries(self) -> bool:
        """Whether a recording step tells more than a silent one; True before one was traced."""
        known = self._names.get(True)
        if known is None:
            return self._dropped is not False
        return bool(self._recorded) or known != self._names.get(False, known)

    def _with_advice(self, error: tf.errors.OpError) -> tf.errors.OpError:
        add_determinism_advice(error)
        if self.mode == "graph":
            return error
        graphs = self._compiled.graphs if self.mode == "loop" else [self._step.compiled]
        return add_xla_advice(error, [graph for graph in graphs if graph is not None])
