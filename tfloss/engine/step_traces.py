"""Traces each kind of step once, and copies its ops to wherever else the step is called. Host code.

    call = traces(kind, batch, options)       # in a function that runs as a graph
    call = traces.compiled(batch, options)    # in a loop that XLA compiles

A graph loop, a single step and a loop compiled by XLA call the same step. To trace it runs the
model's Python, which takes seconds for a large model, while training waits. A copy of the ops takes
a part of that (`tfloss.engine.step_copy` says what is copied for XLA).

Steps of several replicas, and those with single parts compiled by XLA, are traced each time.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfloss import _upstream
from tfloss._upstream import xla_random
from tfloss.engine.finite_guard import FiniteGuard
from tfloss.engine.step_copy import StepCopy, in_guard
from tfloss.step.output import StepOutput
from tfloss.step.trace_options import TraceOptions
from tfloss.step.train_step import TrainStep
from tfloss.step.watched import WatchRequest

Kind = tuple[bool, WatchRequest | None]
"""Of a trace: whether it records the model's summaries, and what it watches."""
SILENT: Kind = (False, None)


@dataclasses.dataclass(frozen=True)
class StepCall:
    """A step that is called in the function that is being traced.

    Attributes:
      output: The output, with the tensors of the function in which the step was traced.
      row: float32 [scalars], the scalars of the output.
      passed: The output's `passed`.
      losses_passed: The output's `losses_passed`.
      summaries: The tensors of the output's summaries.
      watched: The tensors of what is watched, for each `minimize` call.
      graph: The ops of the step with their source lines: a graph, or a part of one.
      variables: Variables that the ops use, if they are copies.
    """

    output: StepOutput
    row: tf.Tensor
    passed: Any
    losses_passed: Any
    summaries: list[Any]
    watched: list[list[Any]]
    graph: Any = None
    variables: Sequence[Any] = ()

    @classmethod
    def of(cls, output: StepOutput) -> "StepCall":
        """The call that gave an output in this function.

        Args:
          output: The output.
        """
        summaries = [one.value for one in output.summaries]
        watched = [one.tensors() for one in output.watched]
        passed = output.passed, output.losses_passed
        graph = tf.compat.v1.get_default_graph()
        return cls(output, output.row(), *passed, summaries, watched, graph)

    def tensors(self) -> list[Any]:
        """All tensors that leave the step, as a nest."""
        return [self.row, self.passed, self.losses_passed, self.summaries, self.watched]


class StepTraces:
    """The traces of a step with one choice of options. The engines of a run share them.

    Args:
      train_step: The step.
      guard: Whether its traces that run as a graph have a guard.
      check: Is given the graph of each step when it is traced, before it runs; it may raise.
      compare: Is given the same graph and the output of the step, to compare them with those of
        the other workers; it may raise.

    Attributes:
      guard: The guard, or None.
    """

    def __init__(
        self,
        train_step: TrainStep,
        *,
        guard: bool,
        check: Callable[[Any], None] = lambda graph: None,
        compare: Callable[[Any, StepOutput], None] = lambda graph, output: None,
    ):
        self.guard = FiniteGuard(train_step) if guard else None
        self._step, self._check, self._compare = train_step, check, compare
        # In the threads of replicas, TensorFlow traces otherwise for XLA.
        self._shares = not _upstream.replicas_have_threads(train_step.strategy)
        self._traced: dict[Kind, list[_TracedStep]] = {}

    def __call__(self, kind: Kind, batch: Any, options: TraceOptions) -> StepCall:
        """Calls a step in a function that runs as a graph. Traced.

        Args:
          kind: What it returns.
          batch: The batch.
          options: The options, the same for all calls of a kind and mode.
        """
        leaves = None if tf.executing_eagerly() else _tensors(batch)  # see run_functions_eagerly
        if leaves is None or not self._shares or options.mode != "graph":
            return self._trace(batch, options)
        if call := self._copied(kind, batch, leaves, xla=False):
            return call
        before, created = _ops_here(), []

        def create(following: Callable[..., Any], **kwargs: Any) -> Any:
            created.append(kwargs.get("name"))
            return following(**kwargs)

        with tf.variable_creator_scope(create):
            call = self._trace(batch, options)
        # `tf.function` traces again what has made variables, and refuses what makes more.
        if not created:
            self._traced.setdefault(kind, []).append(_TracedStep(batch, leaves, call, before))
        return call

    def compiled(self, batch: Any, options: TraceOptions) -> StepCall:
        """Calls a silent step in a function that XLA compiles. Traced.

        Args:
          batch: The batch.
          options: The options, if it is traced.
        """
        leaves = _tensors(batch)
        call = None if leaves is None else self._copied(SILENT, batch, leaves, xla=True)
        if call is not None:
            return call
        with xla_random.as_in_a_graph():
            return self._trace(batch, options)

    def row_size(self, kind: Kind) -> int | None:
        """The number of scalars of a step, or None before it was traced as a graph."""
        traced = self._traced.get(kind)
        return None if traced is None else traced[0].row_size

    def _copied(
        self, kind: Kind, batch: Any, leaves: list[tf.Tensor], *, xla: bool
    ) -> StepCall | None:
        """The call of a copy of the first trace that can be copied, or None."""
        calls = (one.call(batch, leaves, xla=xla) for one in self._traced.get(kind, ()))
        return next((call for call in calls if call is not None), None)

    def _trace(self, batch: Any, options: TraceOptions) -> StepCall:
        output = self._step(batch, options)
        graph = tf.compat.v1.get_default_graph()
        self._check(graph)
        self._compare(graph, output)
        return StepCall.of(output)


class _TracedStep:
    """A step that was traced.

    Args:
      batch: Its batch.
      leaves: The tensors of the batch.
      call: The call.
      before: The number of ops in its graph before it.
    """

    def __init__(self, batch: Any, leaves: list[tf.Tensor], call: StepCall, before: int):
        self.graph: Any = tf.compat.v1.get_default_graph()
        self._batch, self._leaves, self._call = batch, leaves, call
        self._names = [op.name for op in self.graph.get_operations()[before:]]

    def call(self, batch: Any, leaves: list[tf.Tensor], *, xla: bool) -> StepCall | None:
        """Calls the step by a copy of its ops. Traced.

        Args:
          batch: The batch.
          leaves: Its tensors.
          xla: Whether XLA compiles the copy. Then a size that was unknown may be known now.

        Returns:
          None if the batch is another one, or the ops can't be copied.
        """
        try:
            tf.nest.assert_same_structure(self._batch, batch)
        except (TypeError, ValueError):
            return None
        same = _covers if xla else _same
        pairs = list(zip(self._leaves, leaves, strict=True))
        if not all(a.dtype == b.dtype and same(a.shape, b.shape) for a, b in pairs):
            return None
        copy = StepCopy.of(self.graph, self._names, self._leaves, xla=xla)
        if copy is None:
            return None
        nest = self._call.tensors()
        wanted = [one for one in tf.nest.flatten(nest) if isinstance(one, tf.Tensor)]
        given = copy.captured | {mine.name: its for mine, its in pairs}
        given = {name: one for name, one in given.items() if name in copy.inputs}
        results = _upstream.call_ops(copy.ops, given, [one.name for one in wanted], copy.always)
        for one, result in zip(wanted, results, strict=True):
            result.set_shape(one.shape)
        found = iter(results)
        tensors: Any = tf.nest.map_structure(
            lambda one: next(found) if isinstance(one, tf.Tensor) else one, nest
        )
        row, passed, losses_passed, summaries, watched = tensors
        output, variables = self._call.output, copy.variables
        return StepCall(output, row, passed, losses_passed, summaries, watched, self, variables)

    @property
    def row_size(self) -> int:
        """The number of its scalars."""
        return len(self._call.output.scalars)

    def get_operations(self) -> list[tf.Operation]:
        """The ops that a compiled copy has, as they were traced."""
        names = set(self._names)
        ops = self.graph.get_operations()
        return [op for op in ops if op.name in names and not in_guard(op.name)]

    @property
    def captures(self) -> Any:
        """What the graph has captured."""
        return self.graph.captures


def _tensors(batch: Any) -> list[tf.Tensor] | None:
    """The tensors of a batch; None if it has anything else, such as ragged ones."""
    found = [one for one in tf.nest.flatten(batch) if one is not None]  # tf.data lets None through
    return found if all(map(_is_dense, found)) else None


def _is_dense(one: Any) -> bool:
    return isinstance(one, tf.Tensor) and not isinstance(one, tf.__internal__.CompositeTensor)


def _same(mine: tf.TensorShape, its: tf.TensorShape) -> bool:
    return str(mine) == str(its)


def _covers(mine: Any, its: Any) -> bool:
    """Whether a shape is another one, perhaps with unknown sizes."""
    if mine.rank is None or mine.rank != its.rank:
        return mine.rank is None
    return all(size in (None, known) for size, known in zip(mine, its, strict=True))


def _ops_here() -> int:
    return len(tf.compat.v1.get_default_graph().get_operations())
