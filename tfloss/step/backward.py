"""The forward and backward pass of one replica: from a batch to losses and gradients.

Replica code, traced. Nothing is reduced over replicas here, except by the model itself, so that
XLA can compile all of it and each micro-batch can run it.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.data.batch_layout import ROWS_ARE_EXAMPLES, BatchLayout
from tfloss.forward.batch_sums import BatchSum, batch_sums
from tfloss.forward.context import ForwardContext, forward_context
from tfloss.forward.global_batch import GivenNormalisers
from tfloss.forward.local_divisors import LocalDivisor, local_divisors
from tfloss.forward.losses import (
    LossWeights,
    check_reaches_groups,
    check_regularizers_are_trained,
    collect,
    returned_names,
)
from tfloss.inspect.traceback_filtering import unwrapped_keras_errors
from tfloss.optimizers.groups import joint, split_losses
from tfloss.step.forward_errors import explained_errors
from tfloss.step.gradients_by_loss import ByLoss, LossGradientRequest, gradients_by_loss
from tfloss.step.normalisers import NormaliserSums
from tfloss.step.observation import Observation
from tfloss.step.output import ReplicaSpec
from tfloss.step.overwritten_variables import largest_use, split_reached
from tfloss.step.traced_calls import compiled, split_static
from tfloss.step.variables import replica_statistics


class Gradients(NamedTuple):
    """The gradients of the variables that a loss reaches, for each group that is due.

    Attributes:
      weights: Tensors or IndexedSlices. They are summed over micro-batches and replicas.
      overwriting: Values of the variables that Keras overwrites with their gradient, such as the
        scales and amax histories of float8 layers. They are no gradients of the objective. Of
        several values the largest counts, for each element, as in Keras's own accumulation.
      by_loss: For each loss that `ByLoss` lists, its own gradients. They are summed, too.
    """

    weights: list[list[Any]]
    overwriting: list[list[tf.Tensor]]
    by_loss: list[list[tf.Tensor]]


Tensors = tuple[tf.Tensor, Gradients, dict[str, tf.Tensor]]
"""The vector that `ReplicaSpec` describes; gradients; summaries by name."""


@dataclasses.dataclass(frozen=True)
class BackwardTrace:
    """What tracing a forward and backward pass found out. It is the same on all replicas.

    Attributes:
      spec: Description of the tensors.
      unreached: Trained variables that no loss reaches.
      untracked: Trainable variables of the forward pass that the model doesn't know.
      partial: Losses that are a sum over the examples of one replica, or divided by a number of
        them.
      graph: The graph that XLA compiles, or None.
      by_loss: Description of the gradients of single losses.
    """

    spec: ReplicaSpec
    unreached: Sequence[Any]
    untracked: Sequence[tf.Variable]
    partial: Sequence[BatchSum | LocalDivisor]
    graph: tf.Graph | None
    by_loss: ByLoss


@dataclasses.dataclass(frozen=True)
class Backward:
    """Computes the losses of a forward pass and their gradients, group by group.

    Attributes:
      model: The model that the forward pass belongs to.
      forward: Replica code; takes this replica's batch, returns or adds losses.
      variables: `{group: variables that it trains}`.
      due: Names of the groups whose gradients are computed.
      loss_weights: Weights of the losses.
      recording: Whether summaries are computed.
      jit: Whether XLA compiles the pass.
      layout: What counts as an example.
      requests: Who needs the gradients of single losses.
      observe: Is given what each pass computes, or None.
      frozen: Variables that are frozen for a part of the run.
    """

    model: keras.Model
    forward: Callable[[Any], Any]
    variables: Mapping[str, Sequence[Any]]
    due: Sequence[str]
    loss_weights: LossWeights
    recording: bool
    jit: bool
    layout: BatchLayout = ROWS_ARE_EXAMPLES
    requests: Sequence[LossGradientRequest] = ()
    observe: Callable[[Observation], None] | None = None
    frozen: Sequence[Any] = ()

    def __call__(
        self,
        batch: Any,
        step: tf.Tensor,
        weight: Any,
        scale: tf.Tensor | None,
        normalisers: NormaliserSums | None,
    ) -> tuple[Tensors, BackwardTrace]:
        """Runs one forward and backward pass. Replica code, traced.

        Args:
          batch: This replica's batch.
          step: int64 scalar, the number of completed updates.
          weight: Fraction of the step's examples that are in this batch; a float if it is known
            statically, else a float32 scalar.
          scale: float32 scalar by which the objective is multiplied, or None.
          normalisers: Global sums for `global_mean`. None: the model may reduce them itself.

        Returns:
          The tensors, and what is known of them.
        """

        # The arguments are inputs of the compiled function; a static weight is a constant in it.
        def compute(batch: Any, step: tf.Tensor, scale: Any, sums: Any, *weights: Any) -> Any:
            given = None
            if normalisers is not None:
                given = GivenNormalisers(sums, normalisers.learned)
            mine = weights[0] if weights else weight
            return self._traced(batch, forward_context(step, self.recording, mine, given), scale)

        tensors_only, traces = split_static(compute)
        run = compiled(tensors_only) if self.jit else tensors_only
        sums = None if normalisers is None else normalisers.sums
        if isinstance(weight, float):
            return run(batch, step, scale, sums), traces[-1]
        states = replica_statistics(self.model)
        before = [tf.identity(state) for state in states]
        tensors = run(batch, step, scale, sums, weight)
        return _nothing_if_empty(self.layout.count(batch), tensors, states, before), traces[-1]

    def _traced(
        self, batch: Any, opened: Any, scale: tf.Tensor | None
    ) -> tuple[Tensors, BackwardTrace]:
        """Computes losses and gradients in a forward context that is not yet entered."""
        everything = [v for mine in self.variables.values() for v in mine]
        with (
            # Which losses share a backward pass is known when the forward pass is traced.
            tf.GradientTape(persistent=len(self.due) > 1 or bool(self.requests)) as tape,
            _upstream.inputs_untouched(self.model),
        ):
            # TensorFlow never watches the variables of a layer that was built while it was
            # frozen, even after it is unfrozen.
            tape.watch(tf_variables(everything))
            with opened as context, unwrapped_keras_errors(), explained_errors(batch):
                returned = self.forward(batch)
            losses = collect(returned, context, everything)
            mine = split_losses(losses, self.variables)
            check_reaches_groups(losses, mine, returned, self.variables, self.frozen)
            check_regularizers_are_trained(context, mine, self.variables)
            weighted = self.loss_weights.apply(losses, context.step)
            objectives = [
                (groups, _objective([weighted[name] for name in mine[groups[0]]], context, scale))
                for groups in joint(mine, self.due)
            ]
            alone = {
                name: _objective([value], context, scale)
                for name, value in (weighted if self.requests else {}).items()
            }
        found: dict[str, list[Any]] = {}
        with context.backward():
            for groups, objective in objectives:
                nested = {group: tf_variables(self.variables[group]) for group in groups}
                gradients: Any = tape.gradient(objective, nested)
                found.update(gradients)
            by_loss, described = self._by_loss(mine, alone, tape)
        reached, overwritten = split_reached(self.variables, found)
        spec, vector, summaries = ReplicaSpec.pack(
            losses,
            returned_names(returned),
            weighted,
            _sum(weighted.values()),
            context,
            reached,
            overwritten,
        )
        untracked = _untracked(tape, self.model)
        if self.observe is not None:
            parts = losses, self.loss_weights, mine, context, self.variables, found, untracked
            self.observe(Observation(self.forward, batch, returned, *parts))
        size = self.layout.static_count(batch)
        seen = losses, batch, size, context.example_weight
        trace = BackwardTrace(
            spec,
            unreached=self._unreached(found),
            untracked=untracked,
            partial=[*batch_sums(*seen), *local_divisors(*seen)],
            graph=tf.compat.v1.get_default_graph() if self.jit else None,
            by_loss=described,
        )
        return (vector, self._gradients(spec, found, by_loss), summaries), trace

    def _gradients(
        self, spec: ReplicaSpec, found: Mapping[str, Sequence[Any]], by_loss: list[list[tf.Tensor]]
    ) -> Gradients:
        """The gradients of the variables that a loss reaches."""
        return Gradients(
            [[found[k][i] for i in mine] for k, mine in spec.reached.items()],
            [
                [largest_use(found[k][i], self.variables[k][i]) for i in mine]
                for k, mine in spec.overwritten.items()
            ],
            by_loss,
        )

    def _unreached(self, found: Mapping[str, Sequence[Any]]) -> list[Any]:
        """The trained variables that have no gradient."""
        return [
            v
            for group in found
            for v, g in zip(self.variables[group], found[group], strict=True)
            if g is None
        ]

    def _by_loss(
        self, mine: Mapping[str, Sequence[str]], alone: Mapping[str, tf.Tensor], tape: Any
    ) -> tuple[list[list[tf.Tensor]], ByLoss]:
        """The gradients of single losses that were asked for."""

        def gradient(name: str, variables: list[Any]) -> list[Any]:
            return tape.gradient(alone[name], tf_variables(variables))

        return gradients_by_loss(
            gradient, mine, self.variables, self.due, self.requests, self.model
        )


def _untracked(tape: tf.GradientTape, model: keras.Model) -> list[Any]:
    """The trainable variables that a tape has seen and the model doesn't know."""
    known = {id(v.value) for v in model.variables}
    return [v for v in tape.watched_variables() if id(v) not in known]


def _nothing_if_empty(number: Any, tensors: Tensors, states: list[Any], before: list[Any]) -> Any:
    """Makes a batch without examples change nothing: its gradients are 0, statistics restored.

    A value that overwrites a variable is the lowest number, which is the maximum of no values.

    Args:
      number: Number of examples: an int, an int32 scalar, or None if it can't be known.
      tensors: Results of the pass.
      states: Variables that it may have changed.
      before: Their values before it.
    """
    vector, gradients, summaries = tensors
    some = tf.constant(True) if number is None else tf.convert_to_tensor(number > 0)
    with tf.control_dependencies([vector]):
        for state, value in zip(states, before, strict=True):
            state.assign(tf.where(some, state, value))

    def masked(gradient: Any) -> Any:
        if isinstance(gradient, tf.IndexedSlices):
            values = tf.where(some, gradient.values, tf.zeros_like(gradient.values))
            return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
        return tf.where(some, gradient, tf.zeros_like(gradient))

    weights = [[masked(g) for g in each] for each in gradients.weights]
    overwriting = [
        [tf.where(some, value, value.dtype.min) for value in each] for each in gradients.overwriting
    ]
    by_loss = [[masked(g) for g in each] for each in gradients.by_loss]
    return vector, Gradients(weights, overwriting, by_loss), summaries


def _objective(
    weighted: Sequence[tf.Tensor], context: ForwardContext, scale: tf.Tensor | None
) -> tf.Tensor:
    """The weighted sum of losses, times the example weight and the loss scale."""
    total, weight = _sum(weighted), context.example_weight
    if not isinstance(weight, float):
        total = tf.math.multiply_no_nan(total, weight)
    elif weight != 1.0:
        total = total * weight
    return total if scale is None else total * scale


def _sum(terms: Iterable[tf.Tensor]) -> tf.Tensor:
    first, *rest = terms
    return tf.add_n([first, *rest]) if rest else first  # one op, however many there are


def tf_variables(variables: Iterable[Any]) -> list[Any]:
    """TensorFlow's variables, as a tape takes them, of Keras's."""
    return [v.value if isinstance(v, keras.Variable) else v for v in variables]
