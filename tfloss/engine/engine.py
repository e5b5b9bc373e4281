"""Runs a training step K times in one call of a `tf.function`. Host code around traced code.

    logs = engine.run(iterator, 100)
    logs.names, logs.values              # ("losses/total", ...), float32 [100, names]

The scalars of all steps leave the call in one buffer, so nothing is synchronised in between.
There is a silent trace, which loops, and a recording one of a single step, which also returns the
model's summaries. A step that is watched (`tfloss.step.watching`) is traced apart, too.

Three modes give the same results, at speeds that depend on the model:

- "graph": TensorFlow runs each op of each step.
- "step": forward and backward pass of each replica are one XLA program.
- "loop": the whole loop is one XLA program (`tfloss.engine.xla_loop`). Its batches come from a
  `BatchStacker`; a recording or watched step, or a batch of another size, runs as a graph.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfloss import _upstream
from tfloss.common import activity
from tfloss.data.batch_queue import StepInputs
from tfloss.data.stacked_batches import BatchStacker, raised_by_data
from tfloss.engine.step_traces import SILENT, Kind, StepCall, StepTraces
from tfloss.engine.xla_loop import XlaLoop
from tfloss.errors import LossError, NonFiniteLossError, TflossError
from tfloss.forward.recorded_summaries import Summary, summaries_on_host
from tfloss.inspect.determinism import add_determinism_advice
from tfloss.inspect.xla_compile_errors import add_xla_advice
from tfloss.step.output import StepOutput
from tfloss.step.trace_options import Mode, TraceOptions
from tfloss.step.train_step import TrainStep
from tfloss.step.watched import Watched, WatchRequest

_TRACING = "tracing the training step"

# The errors that a step which XLA can't compile may fail with.
COMPILER_ERRORS = (
    tf.errors.InvalidArgumentError,
    tf.errors.UnimplementedError,
    tf.errors.InternalError,
)


@dataclasses.dataclass(frozen=True)
class StepLogs:
    """The values that consecutive steps reported.

    Attributes:
      first: Number of updates completed before these steps.
      names: Tags of the columns.
      values: float32 [steps, names], on the device until somebody reads them.
      summaries: Summaries of the last step, if it was recorded.
      waited: Seconds that the steps waited for their batches.
      losses: `{tag: name}` of the columns that are losses; their total is last.
      watched: What was watched in each `minimize` call of the step, if it was.
    """

    first: int
    names: tuple[str, ...]
    values: Any
    summaries: tuple[Summary, ...] = ()
    waited: Any = 0.0
    losses: Mapping[str, str] = dataclasses.field(default_factory=dict)
    watched: tuple[Watched, ...] = ()

    @property
    def steps(self) -> int:
        """The number of steps."""
        return int(self.values.shape[0])

    def rows(self) -> np.ndarray:
        """The values on the host: float32 [steps, names]."""
        return np.asarray(self.values)


class Engine:
    """Calls a `TrainStep` in a loop on the device.

    Args:
      train_step: A built step.
      mode: How steps run: "graph", "step" or "loop".
      log_every_step: Whether the model's scalar summaries are computed on every step.
      guard: Whether to stop before an update that is not finite.
      check_gradients: Whether the guard checks gradients, too, and not only losses.
      traces: Of all engines of the step with these options, and with `guard`. None: it has its own.

    Attributes:
      mode: How steps run.
      traces: Number of traces so far, of steps that are not part of a compiled loop.
    """

    def __init__(
        self,
        train_step: TrainStep,
        *,
        mode: Mode = "graph",
        log_every_step: bool = False,
        guard: bool = True,
        check_gradients: bool = True,
        traces: StepTraces | None = None,
    ):
        self.mode: Mode = mode
        self._step = train_step
        self._traces = traces or StepTraces(train_step, guard=guard)
        self._guard = self._traces.guard
        check_gradients &= guard
        # The loop compiles whole blocks itself; single steps beside them run as a graph.
        single: Mode = "graph" if mode == "loop" else mode
        self._options = lambda kind: TraceOptions(
            kind[0] or log_every_step,
            single,
            self._guard,
            check_gradients=check_gradients,
            watch=kind[1],
        )
        self._ran: set[Kind] = set()  # of which there was a call
        self._outputs: dict[Kind, StepOutput] = {}  # of the last trace
        self.traces = 0
        self._silent = tf.function(self._loop, autograph=False)
        self._single: dict[Kind, Any] = {}  # functions of one step that takes its batch
        # Of a step whose batches are arguments: by kind, and types of the batches.
        self._programs: dict[tuple[Any, ...], Any] = {}
        self._compiled = XlaLoop(
            train_step,
            lambda *call: self._kept(SILENT, self._traces.compiled(*call)),
            lambda: self._traces.row_size(SILENT),
            recording=log_every_step,
            guard=guard,
            check_gradients=check_gradients,
        )

    def run(
        self,
        source: Any,
        steps: int,
        *,
        recording: bool = False,
        watch: WatchRequest | None = None,
        expected: Kind = SILENT,
    ) -> StepLogs:
        """Runs up to `steps` steps, and at least one. Host code.

        Args:
          source: An iterator of a `tf.data.Dataset` or of a distributed one: all of the steps are
            run. Or a `BatchStacker`: steps of its current block are run.
          steps: Number of steps; any number without a new trace. 1 with `recording` or `watch`.
          recording: Whether the step returns its summaries, if the model has any. Whether it has
            is read from the silent trace, which is made first. So the same steps are recorded
            whatever else this process has run.
          watch: What to watch in the step, or None.
          expected: The kind of a later step, which is traced before these steps run: what can't be
            traced is better known now.

        Raises:
          tf.errors.OutOfRangeError: The data ended; `train_step.counter` says after how many
            steps. StopIteration means the same.
          NonFiniteLossError: A loss or a gradient is NaN or infinite (if guarded).
        """
        if (recording or watch) and steps != 1:
            raise ValueError(f"A recording or watched call runs one step, got steps={steps}.")
        first = int(self._step.counter.numpy())
        try:
            call = self._run_stacked if isinstance(source, BatchStacker) else self._run_iterator
            with _upstream.ordered_sums(), _starting(self.mode, self._ran, (recording, watch)):
                values, found, waited = call(source, steps, (recording, watch), expected)
            self._ran.add((recording, watch))
        except tf.errors.OpError as error:
            # Other ops that the failed assertion has cut off may be named in its place.
            if self._guard is not None:
                self._guard.raise_error()
            if isinstance(error, tf.errors.OutOfRangeError):
                raise
            if raised_by_data(source, error) or not isinstance(error, COMPILER_ERRORS):
                raise _upstream.find_cause(error, TflossError) from None
            raise self.with_advice(error) from None
        except StopIteration:
            raise
        except Exception as error:
            raise _upstream.find_cause(error, TflossError) from None
        # Every summary of a recording step is in its trace, and a step without any is silent.
        output = self._outputs[recording and self.has_summaries(), watch]
        names = tuple(output.scalars)
        summaries, watched = _on_host(output, *found)
        return StepLogs(first, names, values, summaries, waited, output.losses, watched)

    def compiler(self, block: Any) -> Callable[[], None] | None:
        """Traces the compiled loop, and returns a function that compiles it in another thread.

        Args:
          block: Nest of tensors, of the shapes of the blocks to come.

        Returns:
          The function; None if there is no other way than to run a step. It raises what the
          compiler does.
        """
        try:
            return self._compiled.compiler(block)
        except Exception as error:
            raise _upstream.find_cause(error, TflossError) from None

    def _run_iterator(
        self, iterator: Any, steps: int, kind: Kind, expected: Kind
    ) -> tuple[Any, Any, Any]:
        """Runs steps whose batches are taken inside the function."""
        number = tf.TensorSpec([], tf.int32)

        def single(kind: Kind) -> Any:  # the function of one step that takes its batch itself
            if kind not in self._single:
                taken = functools.partial(self._one_taken, kind)
                self._single[kind] = tf.function(taken, autograph=False)
            return self._single[kind]

        def trace(kind: Kind) -> None:
            if kind == SILENT:
                self._silent.get_concrete_function(iterator, number)
            else:
                single(kind).get_concrete_function(iterator)

        kind = self._resolved(kind, expected, trace)
        if kind == SILENT:
            values, waited = self._silent(iterator, tf.constant(steps))
            return values, (), waited
        values, *found, waited = single(kind)(iterator)
        return values, found, waited

    def _run_stacked(
        self, blocks: BatchStacker, steps: int, kind: Kind, expected: Kind
    ) -> tuple[Any, Any, Any]:
        """Runs steps whose batches are arguments: a stacked block, or those of a single step."""
        before = blocks.waited
        alone = self.mode != "loop"
        inputs = StepInputs(batches=blocks.take_step()) if alone else blocks.take(steps)
        waited = blocks.waited - before
        spec = blocks.element_spec

        def trace(kind: Kind) -> None:
            if inputs.block is None or kind != SILENT:
                self._single_program(kind, spec)
            else:
                self._compiled.trace(inputs)

        kind = self._resolved(kind, expected, trace)
        if kind != SILENT:
            batches = inputs.batches or self._compiled.first_batches(inputs)
            values, *found = self._single_program(kind, spec)(batches)
            return values, found, waited
        try:
            if inputs.block is None:
                return self._single_program(SILENT, spec)(inputs.batches), (), waited
            values = self._compiled.run(inputs)
        except COMPILER_ERRORS:
            if self._guard is None or not self._guard.failed:
                blocks.give_back(inputs)
            raise
        except NonFiniteLossError as error:
            blocks.give_back(inputs, 1)
            self._examine(error.batch, spec)
            raise
        if len(values) < inputs.steps:
            blocks.give_back(inputs, len(values))
        return values, (), waited

    def _resolved(self, kind: Kind, expected: Kind, trace: Callable[[Kind], None]) -> Kind:
        """Records only if there is something to record. `trace` makes the trace of a kind."""
        if (kind[0] or expected != SILENT) and SILENT not in self._outputs:
            trace(SILENT)  # it says whether there is
        if expected != SILENT:
            trace((expected[0] and self.has_summaries(), expected[1]))
        return kind[0] and self.has_summaries(), kind[1]

    def _single_program(self, kind: Kind, spec: Any) -> Any:
        """The program of one step whose batches are arguments: one for all sizes of a data set.

        A program for one size may round otherwise than one for all sizes. So which one runs must
        not depend on the sizes that this process happened to see first.

        Args:
          kind: What it returns.
          spec: Nest of `tf.TensorSpec`s of a batch, as the data set declares them.
        """
        key = kind, *tf.nest.flatten(spec)
        if key not in self._programs:
            traced = tf.function(
                lambda each: self._one(kind, self._step.gathered(each)), autograph=False
            )
            self._programs[key] = traced.get_concrete_function((spec,) * self._step.accumulate)
        return self._programs[key]

    def _examine(self, batches: tuple[Any, ...], spec: Any) -> None:
        """Runs a bad step of the compiled loop as a graph, whose guard names what is at fault.

        If nothing is at fault there, the state is that before the step again.
        """
        states = self._step.state()
        before = [tf.identity(one) for one in states]
        self._single_program(SILENT, spec)(batches)
        for variable, value in zip(states, before, strict=True):
            variable.assign(value)

    @activity.during(_TRACING)  # it is called when it is traced
    def _loop(self, iterator: Any, steps: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Runs silent steps. Traced. Returns their rows, and the seconds waited for batches."""

        def body(i: tf.Tensor, rows: tf.TensorArray, waited: tf.Tensor) -> Any:
            batch, seconds = self._taken(iterator)
            with tf.control_dependencies([seconds]):  # see `_taken`
                call = self._kept(SILENT, self._traces(SILENT, batch, self._options(SILENT)))
            return i + 1, rows.write(i, call.row), waited + seconds

        rows = tf.TensorArray(tf.float32, size=steps, element_shape=[None])
        start = [0, rows, tf.constant(0.0, tf.float64)]
        _, rows, waited = tf.while_loop(
            lambda i, rows, waited: i < steps, body, start, parallel_iterations=1
        )
        self.traces += 1
        return rows.stack(), waited

    def _taken(self, iterator: Any) -> tuple[Any, tf.Tensor]:
        """Takes the batch of a step. Traced. Returns it, and the seconds waited for it.

        The step must depend on the seconds. Otherwise its ops that need no batch can occupy all
        threads, one on a single core, and the clock is read only when they are done.
        """
        if _upstream.op_determinism_enabled():  # refuses to read a clock
            return self._step.take(iterator), tf.constant(0.0, tf.float64)
        began = tf.timestamp()
        with tf.control_dependencies([began]):
            batch = self._step.take(iterator)
        there = [x for x in tf.nest.flatten(batch, expand_composites=True) if x is not None]
        with tf.control_dependencies(there[-1:]):
            return batch, tf.timestamp() - began

    def _one_taken(self, kind: Kind, iterator: Any) -> tuple[Any, ...]:
        """Runs one step that is no silent one, of the next batch. Traced."""
        batch, waited = self._taken(iterator)
        with tf.control_dependencies([waited]):
            return *self._one(kind, batch), waited

    @activity.during(_TRACING)
    def _one(self, kind: Kind, batch: Any) -> Any:
        """Runs one step, of a batch as `TrainStep.take` returns it. Traced.

        Returns:
          Its row. Unless the step is silent: a tuple of the row; the summaries, if it records; what
          it watches.
        """
        call = self._kept(kind, self._traces(kind, batch, self._options(kind)))
        row = call.row[tf.newaxis]
        self.traces += 1
        if kind == SILENT:
            return row
        return row, call.summaries if kind[0] else [], call.watched

    def _kept(self, kind: Kind, call: StepCall) -> StepCall:
        """Keeps the output of a call that is traced, after a look at its names."""
        output = call.output
        names = tuple(output.scalars)
        before = tuple(self._outputs.setdefault(kind, output).scalars)
        if before != names:
            raise LossError(
                "The losses differ between two traces of the step (batches of different "
                f"shapes?): {', '.join(before)}, then {', '.join(names)}. Report the same "
                "losses for every shape."
            )
        self._outputs[kind] = output
        return call

    def has_summaries(self) -> bool:
        """Whether a recording step returns more than a silent one; True before one was traced."""
        silent = self._outputs.get(SILENT)
        # With `log_every_step` the scalars are there, and other summaries are traced but dropped.
        return silent is None or bool(silent.dropped or silent.summaries)

    def with_advice(self, error: tf.errors.OpError) -> tf.errors.OpError:
        """Adds what is known of the error's cause to it."""
        add_determinism_advice(error)
        if _upstream.caused_by_strings(error):
            error.add_note(
                "A tensor holds strings. Map them to numbers in the data set, as by "
                "keras.layers.StringLookup(vocabulary=[...], num_oov_indices=0)."
            )
        if _upstream.caused_by_collectives_of_another_strategy(error):
            error.add_note(
                "TensorFlow's collectives serve one strategy object in a process, and this one has "
                "trained under another. Restart it, make one strategy and use it for all models. "
                "On CPUs, use tfloss.make_strategy, or give MirroredStrategy "
                "cross_device_ops=tf.distribute.ReductionToOneDevice()."
            )
            return error
        if self.mode == "graph":
            return error
        graphs = [graph for output in self._outputs.values() for graph in output.graphs]
        if self._compiled.graph is not None:
            graphs.append(self._compiled.graph)
        return add_xla_advice(error, graphs)


def _starting(mode: Mode, ran: Collection[Kind], kind: Kind) -> Any:
    """Says what a first call waits for: it traces, may compile, and needs a batch."""
    if kind in ran:
        return contextlib.nullcontext()
    if kind[1] is not None:
        return activity.during("running the first watched step", runs_steps=True)
    what = "with summaries" if kind[0] and ran else "of the run"
    texts = {"step": "compiling the training step", "loop": "compiling the training loop"}
    return activity.during(texts.get(mode, f"running the first step {what}"), runs_steps=True)


def _on_host(
    output: StepOutput, summaries: Any = (), watched: Any = ()
) -> tuple[tuple[Summary, ...], tuple[Watched, ...]]:
    """Brings what a single step returns beside its row to the host."""
    pairs = zip(output.watched, watched, strict=False)
    return (
        summaries_on_host(output.summaries if summaries else (), summaries),
        tuple(Watched(one.names, *(x.numpy() for x in each)) for one, each in pairs),
    )
