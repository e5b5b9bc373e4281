"""Many steps as one XLA program: forward, backward, update, and the loop around them.

The state stays inside the loop, so that small kernels follow each other without TensorFlow in
between. One replica; batches come as a stacked block (`tfloss.data.stacked_batches`). Host code
around traced code.

A loop compiled whole can't stop to look at a loss. So the host looks at all of them afterwards,
and if one is not finite, puts the state back to where the block began and runs the steps before
the bad one again; the bad one then comes first in a call, and is the error. (To keep each variable
by a `tf.where` if its step is bad, makes XLA copy the state in every step.)
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfloss._upstream import xla_random as _xla_random
from tfloss.data.batch_queue import StepInputs, batch_at
from tfloss.errors import NonFiniteLossError
from tfloss.step.output import StepOutput
from tfloss.step.train_step import MOST_SKIPPED, TrainStep


class XlaLoop:
    """The steps of a block, compiled whole.

    Args:
      train_step: a built step, of a single replica.
      row: makes a step's output float32 [names].
      log_every_step: also compute the model's scalar summaries.
      guard: stop before an update whose losses are not finite.

    Attributes:
      graphs: what is compiled, once it is traced.
    """

    def __init__(
        self,
        train_step: TrainStep,
        row: Callable[[StepOutput], tf.Tensor],
        *,
        log_every_step: bool,
        guard: bool,
    ):
        self._step, self._row = train_step, row
        self._every_step, self._guard = log_every_step, guard
        self.graphs: list[Any] = []
        self._run = tf.function(self._loop, jit_compile=True, autograph=False)
        self._known: list[Any] = []  # variables whose values before are an output
        self._others: list[Any] | None = None  # what else the program has: raw variables
        self._programs: dict[tuple, Any] = {}
        self._read = tf.function(
            lambda: [tf.identity(v.read_value()) for v in self._others or ()], autograph=False
        )

    def run(self, part: StepInputs, names: Callable[[], tuple[str, ...]]) -> np.ndarray:
        """Runs the part's steps, or those before a bad one (if guarded).

        Returns float32 [steps, names], of those that were run.
        Raises NonFiniteLossError if the first is bad, with the state as it was before.
        """
        bounds = tf.constant(part.start), tf.constant(part.steps)
        skipped = int(self._step.skipped_in_a_row.numpy()) if self._step.skip_nonfinite else 0
        program = self._program(part.block, *bounds)
        others = self._read() if self._guard and self._others else []
        rows, before = program(part.block, *bounds)
        values = rows.numpy()[: part.steps]
        if self._guard:
            return self._good(part, values, names(), (before, others), skipped)
        return values

    def _program(self, block: Any, *bounds: tf.Tensor) -> Any:
        """The program for blocks like this one. `tf.function` would hash the types of all variables
        to find it, which a block of small steps feels."""
        kind = tuple((x.shape, x.dtype) for x in tf.nest.flatten(block))
        if kind not in self._programs:
            self._programs[kind] = self._run.get_concrete_function(block, *bounds)
            if self._others is None:  # once, as `_read` is traced once
                known = {id(one) for one in self._known}
                variables = self._programs[kind].graph.variables
                self._others = [one for one in variables if id(one) not in known]
        return self._programs[kind]

    def _loop(
        self, block: Any, start: tf.Tensor, steps: tf.Tensor
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Traced: so many steps, from batch `start` of a block.

        Their rows; and, if guarded, the state before them, as one vector of each dtype: to read it
        in a call of its own costs more than the copy, and so do hundreds of outputs.
        """
        self._known = self._step.state() if self._guard else []
        before = {
            dtype: tf.concat([tf.reshape(one.read_value(), [-1]) for one in ones], 0)
            for dtype, ones in _by_dtype(self._known).items()
        }
        many = self._step.accumulate
        most = tf.nest.flatten(block)[0].shape[0] // many
        self.graphs = [tf.compat.v1.get_default_graph()]

        def body(i, rows):
            self.graphs.append(tf.compat.v1.get_default_graph())
            batches = [batch_at(block, start + i * many + k) for k in range(many)]
            with _xla_random.as_in_a_graph():
                output = self._step(self._step.gathered(batches), recording=self._every_step)
            return i + 1, rows.write(i, self._row(output))

        guard, self._step.guard = self._step.guard, None
        try:
            rows = tf.TensorArray(tf.float32, size=most, element_shape=[None])
            _, rows = tf.while_loop(
                lambda i, rows: i < steps, body, [0, rows], parallel_iterations=1
            )
        finally:
            self._step.guard = guard
        return rows.stack(), before

    def _good(
        self,
        part: StepInputs,
        values: np.ndarray,
        names: tuple[str, ...],
        before: tuple[dict[str, tf.Tensor], list[tf.Tensor]],
        skipped: int,
    ) -> np.ndarray:
        """The rows before the first bad one; then the state is that before it, too."""
        watched = ("losses/", "gradient_norm") if self._step.watches_norms else ("losses/",)
        columns = [i for i, name in enumerate(names) if name.startswith(watched)]
        bad = ~np.isfinite(values[:, columns]).all(1)
        if self._step.skip_nonfinite:
            # Those were left out; only many in a row are a failure.
            earlier = np.arange(MOST_SKIPPED, 0, -1) <= skipped
            lately = np.concatenate([earlier, bad])
            bad = np.lib.stride_tricks.sliding_window_view(lately, MOST_SKIPPED + 1).all(1)
        if not bad.any():
            return values
        index = int(np.argmax(bad))
        known, others = before
        for dtype, ones in _by_dtype(self._known).items():
            values_of = tf.split(known[dtype], [one.shape.num_elements() for one in ones])
            for variable, value in zip(ones, values_of, strict=True):
                variable.assign(tf.reshape(value, variable.shape))
        for variable, value in zip(self._others or (), others, strict=True):
            variable.assign(value)
        if index:
            bounds = tf.constant(part.start), tf.constant(index)
            self._program(part.block, *bounds)(part.block, *bounds)
            return values[:index]
        losses = {names[i].removeprefix("losses/"): float(values[0, i]) for i in columns}
        many = self._step.accumulate
        batches = tuple(batch_at(part.block, part.start + k) for k in range(many))
        raise NonFiniteLossError(int(self._step.counter.numpy()) + 1, losses, batches)


def _by_dtype(variables: list[Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for one in variables:
        found.setdefault(tf.as_dtype(one.dtype).name, []).append(one)
    return found
