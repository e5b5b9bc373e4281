"""Many steps as one XLA program: forward, backward, update, and the loop around them.

The state stays inside the loop, so that small kernels follow each other without TensorFlow in
between. One replica; batches come as a stacked block (`tfloss.data.stacked_batches`). Host code
around traced code.

A loop that is compiled as a whole can't stop to look at a loss. So each step reports whether its
losses were finite, and the host looks at that afterwards. If a step failed, the host restores the
state from before the block and runs the steps before the bad one again. The bad step is then the
first of the next call, which raises the error. (Keeping each variable by a `tf.where` in a bad step
makes XLA copy the state in every step.)

A bad gradient stays in the weights with most optimizers. The loop then checks the weights once,
after the last step, and the host finds the bad step by bisection. With other optimizers each step
checks its gradients, too.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfloss import _upstream
from tfloss.checkpoint import nonfinite_variables
from tfloss.common import activity
from tfloss.data.batch_queue import StepInputs, batch_at
from tfloss.engine.step_traces import StepCall
from tfloss.errors import NonFiniteLossError
from tfloss.inspect.xla_compile_errors import refuse_strings
from tfloss.optimizers.nonfinite_updates import weights_tell
from tfloss.step.finite_check import element_sum
from tfloss.step.output import StepOutput
from tfloss.step.trace_options import TraceOptions
from tfloss.step.train_step import TrainStep


class XlaLoop:
    """Runs the steps of a block as one XLA program.

    Args:
      train_step: A built step, of a single replica.
      call: Traced code; calls the step on a batch, with options if it is traced.
      row_size: Returns the number of its scalars, if that is known before it is called, or None.
      recording: Whether the model's scalar summaries are computed.
      guard: Whether to stop before an update that is not finite.
      check_gradients: Whether gradients are checked, too.

    Attributes:
      graph: The ops of a step with their source lines, once it is traced.
    """

    def __init__(
        self,
        train_step: TrainStep,
        call: Callable[[Any, TraceOptions], StepCall],
        row_size: Callable[[], int | None] = lambda: None,
        *,
        recording: bool,
        guard: bool,
        check_gradients: bool,
    ):
        self._step, self._call, self._guard = train_step, call, guard
        self._row_size = row_size
        self._recording, self._check_gradients = recording, check_gradients
        self._checked: list[Any] = []  # weights that show a bad gradient
        self._output: StepOutput | None = None  # of the last trace
        self.graph: Any = None
        self._copied: Sequence[tf.Variable] = ()  # variables of a copied step
        self._run = tf.function(self._loop, jit_compile=True, autograph=False)
        self._known: list[Any] = []  # variables whose values before are an output
        self._others: list[Any] | None = None  # the program's other variables: raw ones
        self._programs: dict[tuple[Any, ...], Any] = {}
        self._read = tf.function(
            lambda: [tf.identity(v.read_value()) for v in self._others or ()], autograph=False
        )

    def run(self, inputs: StepInputs) -> np.ndarray:
        """Runs the steps, or (if guarded) those before the first bad one.

        Args:
          inputs: A stacked block, and which of its steps to run.

        Returns:
          float32 [steps, names], of the steps that were run.

        Raises:
          NonFiniteLossError: The first step is bad. The state is as it was before it.
        """
        bounds = tf.constant(inputs.start), tf.constant(inputs.steps)
        program = self._program(inputs.block, *bounds)
        others = self._read() if self._guard and self._others else []
        rows, before, weights_finite = program(inputs.block, *bounds)
        values = rows.numpy()[: inputs.steps]
        if not self._guard:
            return values
        values, failed = values[:, :-1], values[:, -1] > 0
        if not failed.any() and bool(weights_finite):
            return values

        def run_again(steps: int) -> bool:
            self._restore(before, others)
            bounds = tf.constant(inputs.start), tf.constant(steps)
            return bool(program(inputs.block, *bounds)[2])

        good = int(np.argmax(failed)) if failed.any() else inputs.steps - 1
        if good and not run_again(good):
            good = _largest(run_again, good)
            if good:
                run_again(good)
        if good:
            return values[:good]
        self._restore(before, others)
        raise self._error(inputs, values[0])

    def trace(self, inputs: StepInputs) -> None:
        """Traces the program for a block, and runs nothing."""
        self._program(inputs.block, tf.constant(inputs.start), tf.constant(inputs.steps))

    def compiler(self, block: Any) -> Callable[[], None] | None:
        """Traces the program for blocks of these shapes.

        Args:
          block: Nest of tensors [batches of a full block, ...].

        Returns:
          A function that compiles the program, and may be called in another thread: it changes no
          variable, and makes no step. None if only a call with the variables can compile it.
        """
        bounds = tf.constant(0), tf.constant(0)
        program = self._program(block, *bounds)
        variables = [*self._step.state(), *self._copied]
        if not _upstream.can_compile_on_copies(program, variables):
            return None

        def compile_now() -> None:
            # With other options than those of a run, it would be compiled again.
            with _upstream.ordered_sums():
                _upstream.compile_on_copies(program, variables, block, *bounds)

        return compile_now

    def first_batches(self, inputs: StepInputs) -> tuple[Any, ...]:
        """Returns the batches of the first step of a block."""
        many = self._step.accumulate
        return tuple(batch_at(inputs.block, inputs.start + k) for k in range(many))

    def _program(self, block: Any, *bounds: tf.Tensor) -> Any:
        """The program for blocks of these shapes.

        `tf.function` would hash the types of all variables to find it, which takes a noticeable
        part of a block of small steps.
        """
        kind = tuple((x.shape, x.dtype) for x in tf.nest.flatten(block))
        if kind not in self._programs:
            self._choose_check()
            with activity.during("tracing the training loop"):
                self._programs[kind] = self._run.get_concrete_function(block, *bounds)
            if self._others is None:  # once, as `_read` is traced once
                known = {id(one) for one in self._known}
                variables = [*self._programs[kind].graph.variables, *self._copied]
                others = {id(one): one for one in variables if id(one) not in known}
                self._others = list(others.values())
        return self._programs[kind]

    def _loop(self, block: Any, *bounds: tf.Tensor) -> Any:
        """Runs `_steps`. Traced."""
        results = _upstream.call_lifted(self._steps, block, *bounds)
        refuse_strings(tf.compat.v1.get_default_graph(), self.graph)
        return results

    def _steps(
        self, block: Any, start: tf.Tensor, steps: tf.Tensor
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor], tf.Tensor]:
        """Runs `steps` steps, from batch `start` of a block on. Traced.

        Returns:
          The rows of the steps; if guarded, the state before them, as one vector of each dtype: to
          read it in a call of its own costs more than the copy, and so do hundreds of outputs; and
          whether the weights are finite afterwards, if they are checked in place of gradients.
        """
        self._known = self._step.state() if self._guard else []
        before = {
            dtype: _upstream.read_variables(ones, joined=True)[0]
            for dtype, ones in _by_dtype(self._known).items()
        }
        many = self._step.accumulate
        most = tf.nest.flatten(block)[0].shape[0] // many
        options = TraceOptions(
            self._recording, "loop", check_gradients=self._check_gradients and not self._checked
        )

        def body(i: tf.Tensor, rows: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
            batches = [batch_at(block, start + i * many + k) for k in range(many)]
            call = self._call(self._step.gathered(batches), options)
            self._output, self.graph, self._copied = call.output, call.graph, call.variables
            row = call.row
            if self._guard:
                passed = call.passed if options.check_gradients else call.losses_passed
                row = tf.concat([row, [tf.where(passed, 0.0, 1.0)]], 0)
            return i + 1, rows.write(i, row)

        # If it isn't known, TensorFlow makes XLA's program of the body twice, to find it out.
        size = self._row_size()
        size = None if size is None else size + self._guard
        rows = tf.TensorArray(tf.float32, size=most, element_shape=[size])
        _, rows = tf.while_loop(lambda i, rows: i < steps, body, [0, rows], parallel_iterations=1)
        weights = _upstream.read_variables([one.value for one in self._checked])
        return rows.stack(), before, tf.math.is_finite(element_sum(weights))

    def _choose_check(self) -> None:
        """Chooses the weights to check in place of gradients, if they are enough. Host code.

        Weights that are infinite on purpose, such as a mask of logits, would never pass.
        """
        groups = self._step.groups.values()
        weights = [one for group in groups for one in group.trainable(self._step.model)]
        enough = (
            self._guard
            and self._check_gradients
            and not self._step.skipping.active
            and weights_tell(groups, weights)
            and not nonfinite_variables({one.path: one for one in weights})
        )
        self._checked = weights if enough else []

    def _restore(self, before: dict[str, tf.Tensor], others: list[tf.Tensor]) -> None:
        """Restores the state from before the block."""
        for dtype, ones in _by_dtype(self._known).items():
            values = tf.split(before[dtype], [one.shape.num_elements() for one in ones])
            for variable, value in zip(ones, values, strict=True):
                variable.assign(tf.reshape(value, variable.shape))
        for variable, value in zip(self._others or (), others, strict=True):
            variable.assign(value)

    def _error(self, inputs: StepInputs, row: np.ndarray) -> NonFiniteLossError:
        """The error of the first step of a block, as far as the block knows it."""
        assert self._output is not None
        columns = list(self._output.scalars)
        names = self._output.losses.items()
        losses = {name: float(row[columns.index(tag)]) for tag, name in names}
        step = int(self._step.counter.numpy()) + 1
        return NonFiniteLossError(step, losses, self.first_batches(inputs))


def _largest(test: Callable[[int], bool], failing: int) -> int:
    """Returns the largest number below `failing` that passes a test; all numbers below it do."""
    passing = 0
    while failing - passing > 1:
        middle = (passing + failing) // 2
        if test(middle):
            passing = middle
        else:
            failing = middle
    return passing


def _by_dtype(variables: list[Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for one in variables:
        found.setdefault(tf.as_dtype(one.dtype).name, []).append(one)
    return found
