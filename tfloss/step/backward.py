"""One replica's forward and backward pass: from a batch to losses and gradients. Replica code.

Nothing is reduced over replicas here (but what the model itself reduces), so that all of it can
be compiled by XLA, and be run once for each micro-batch.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss._upstream import xla_random as _xla_random
from tfloss.data import batches
from tfloss.errors import LossError
from tfloss.forward.context import forward_context
from tfloss.forward.global_batch import CountingNormalisers, GivenNormalisers
from tfloss.forward.losses import (
    REGULARIZATION,
    LossWeights,
    check_reaches_variables,
    collect,
    gradient_reaches,
    returned_names,
)
from tfloss.optimizers.groups import split_losses
from tfloss.step.output import ReplicaReport


class Backward:
    """Losses of a forward pass, and their gradients, group by group.

    Args:
      model: whose forward pass it is.
      forward: takes this replica's batch, returns or adds losses.
      variables: `{group: what it trains}`.
      due: the groups whose gradients are wanted.
      weights: of the losses.
      recording: whether summaries are.
      jit: compile it.

    Attributes:
      report: what the tensors are; known once `gradients` is traced, the same on all replicas.
      unreached: variables that no loss reaches.
      untracked: trainable variables in the forward pass that the model doesn't know.
      graph: what is compiled, with `jit`; known once `gradients` is traced.
      learned: which normalisers have a gradient; known once `count` is traced.
    """

    def __init__(
        self,
        model: keras.Model,
        forward: Callable[[Any], Any],
        variables: Mapping[str, list[Any]],
        due: Iterable[str],
        weights: LossWeights,
        *,
        recording: bool,
        jit: bool,
    ):
        self._model, self._forward, self._weights = model, forward, weights
        self._variables = variables
        self._all = [v for mine in variables.values() for v in mine]
        self._due = tuple(due)
        self._recording, self._jit = recording, jit
        self.report: ReplicaReport | None = None
        self.unreached: list[Any] = []
        self.untracked: list[tf.Variable] = []
        self.graph: tf.Graph | None = None
        self.learned: list[bool] = []

    def gradients(
        self, batch: Any, step: tf.Tensor, share: Any, scale: Any, sums: tf.Tensor | None
    ) -> tuple[tf.Tensor, list[list[Any]], dict[str, tf.Tensor]]:
        """One forward and backward pass.

        Args:
          batch: this replica's.
          step: int64 scalar, completed updates.
          share: the fraction of the step's examples that are in this batch; a float if it is
            known statically.
          scale: float32 scalar that the objective is multiplied by, or None.
          sums: float32 [n, 2], the global sums of `global_mean`'s normalisers, or None where the
            model may reduce them itself.

        Returns:
          The vector that `report` describes; for each due group the gradients of the
          variables that are reached; summaries by name.
        """

        def compute(batch, step, share, scale, sums):
            # A constant to the model's code, and an input to a compiled function.
            given = None if sums is None else GivenNormalisers(sums, self.learned)
            several = len(self._due) > 1
            with (
                tf.GradientTape(persistent=several) as tape,
                _upstream.inputs_untouched(self._model),
            ):
                # Watched in any case: TensorFlow's variables of a layer that was built while it
                # was frozen are never watched by themselves, not even once it is unfrozen.
                tape.watch(_tf_variables(self._all))
                with forward_context(step, self._recording, share, given) as context:
                    returned = self._forward(batch)
                losses = collect(returned, context, self._all)
                mine = split_losses(losses, self._variables)
                for group, names in mine.items():
                    own = {n: losses[n] for n in names if n != REGULARIZATION}
                    check_reaches_variables(own, returned, self._variables[group])
                weighted = self._weights.apply(losses, step)
                objectives = {
                    group: _counted(_sum(weighted[name] for name in mine[group]), share, scale)
                    for group in self._due
                }
            with context.backward():
                found = {
                    group: tape.gradient(objective, _tf_variables(self._variables[group]))
                    for group, objective in objectives.items()
                }
            own = {id(v.value) for v in self._model.variables}
            self.untracked = [v for v in tape.watched_variables() if id(v) not in own]
            self.unreached = [
                v
                for group in found
                for v, g in zip(self._variables[group], found[group], strict=True)
                if g is None
            ]
            total = _sum(weighted.values())
            report, vector, summaries = ReplicaReport.pack(
                losses, returned_names(returned), weighted, total, context, found
            )
            self.report = report
            grads = [[found[k][i] for i in reached] for k, reached in report.reached.items()]
            self.graph = tf.compat.v1.get_default_graph() if self._jit else None
            return vector, grads, summaries

        if not isinstance(share, float):
            batch_count = batches.count(batch)
            return self._maybe_empty(compute, batch_count, batch, step, share, scale, sums)
        if self._jit:
            return _compiled(lambda b, s, c, n: compute(b, s, share, c, n))(
                batch, step, scale, sums
            )
        return compute(batch, step, share, scale, sums)

    def count(
        self, batch: Any, step: tf.Tensor, seeds: list[tf.Tensor]
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """The local sums that `global_mean` needs, found without changing any state.

        Args:
          seeds: the random states at the beginning of this forward pass.

        Returns:
          float32 [n, 2], and the random states after it.
        """

        def compute(batch, step, seeds):
            counting = CountingNormalisers(gradient_reaches(self._all))
            states = [state for _, state in _upstream.seed_states(self._model)]
            scope = keras.StatelessScope(state_mapping=list(zip(states, seeds, strict=True)))
            with scope, _upstream.inputs_untouched(self._model):
                with forward_context(step, False, normalisers=counting):
                    self._forward(batch)
            self._check_pure()
            self.learned = counting.learned
            after = [scope.get_current_value(state) for state in states]
            return _stacked(counting.sums), [
                b if a is None else a for a, b in zip(after, seeds, strict=True)
            ]

        return (_compiled(compute) if self._jit else compute)(batch, step, seeds)

    def _maybe_empty(self, compute, number, batch, step, share, scale, sums):
        """`compute` on a batch that may have no example: then it changes nothing."""
        states = statistics(self._model)
        before = [tf.identity(state) for state in states]
        if self._jit:
            compute = _compiled(compute)
        vector, grads, summaries = compute(batch, step, share, scale, sums)
        some = tf.constant(True) if number is None else tf.convert_to_tensor(number > 0)
        with tf.control_dependencies([vector]):
            for state, value in zip(states, before, strict=True):
                state.assign(tf.where(some, state, value))

        def masked(gradient):
            if isinstance(gradient, tf.IndexedSlices):
                values = tf.where(some, gradient.values, tf.zeros_like(gradient.values))
                return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
            return tf.where(some, gradient, tf.zeros_like(gradient))

        return vector, [[masked(g) for g in each] for each in grads], summaries

    def _check_pure(self) -> None:
        """Raises LossError if a forward pass that must change nothing assigns a variable."""
        graph = tf.compat.v1.get_default_graph()
        for op in graph.get_operations():
            if op.type.startswith("Assign") and op.type.endswith("VariableOp"):
                raise LossError(
                    f"The training forward assigns a tf.Variable ({op.name}). Where gradients are "
                    "accumulated, or compiled on several replicas, it runs once more to find "
                    "global_mean's sums, and must not change anything then: make the variable "
                    "with add_weight(trainable=False), which is protected."
                )


def statistics(model: keras.Model) -> list[Any]:
    """TensorFlow's variables of what each replica finds for itself in a forward pass."""
    return [
        variable.value
        for variable in model.non_trainable_variables
        if tf.as_dtype(variable.dtype).is_floating and variable.aggregation in (None, "none")
    ]


def state_variables(model: keras.Model) -> list[Any]:
    """TensorFlow's variables of what a forward pass changes: statistics, counters, metrics.

    Not random states; nor what replicas sum when they assign to it, which can't be put back.
    """
    seeds = {id(state) for _, state in _upstream.seed_states(model)}
    own = [one for one in model.non_trainable_variables if id(one) not in seeds]
    own = [one for one in own if one.aggregation != "sum"]
    return [one.value for one in (*own, *model.metrics_variables)]


def _compiled(function: Callable) -> Callable:
    def traced(*arguments):
        with _xla_random.as_in_a_graph():
            return function(*arguments)

    return tf.function(traced, jit_compile=True, autograph=False)


def _counted(total: tf.Tensor, share: Any, scale: Any) -> tf.Tensor:
    if not isinstance(share, float):
        total = tf.math.multiply_no_nan(total, share)
    elif share != 1.0:
        total = total * share
    return total if scale is None else total * scale


def _sum(terms: Iterable[tf.Tensor]) -> tf.Tensor:
    first, *rest = terms
    return tf.add_n([first, *rest]) if rest else first  # one op, however many there are


def _stacked(sums: list[tf.Tensor]) -> tf.Tensor:
    return tf.stack(sums) if sums else tf.zeros([0, 2])


def _tf_variables(variables: Iterable[Any]) -> list[Any]:
    return [v.value if isinstance(v, keras.Variable) else v for v in variables]
