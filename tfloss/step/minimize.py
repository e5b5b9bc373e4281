"""One `minimize` call: forward and backward pass, check, update. Cross-replica, traced."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.balancing import Balancer
from tfloss.common.logger import ChiefLogger
from tfloss.data.batch_layout import ROWS_ARE_EXAMPLES, BatchLayout
from tfloss.data.batches import MicroBatches
from tfloss.distribute.strategy import is_chief
from tfloss.forward.losses import LossWeights
from tfloss.optimizers.groups import Group, due_sets
from tfloss.optimizers.sparse_gradients import Form, sparse_form
from tfloss.step import update
from tfloss.step.backward import Backward, BackwardTrace
from tfloss.step.balance import Balance
from tfloss.step.example_weights import example_weights
from tfloss.step.finite_check import FiniteCheck, all_finite
from tfloss.step.gradients import StepGradients, accumulate
from tfloss.step.gradients_by_loss import LossGradientRequest
from tfloss.step.normalisers import NormaliserPass
from tfloss.step.output import TOTAL, OutputBuilder, ReplicaSpec
from tfloss.step.skipping import Skipping
from tfloss.step.trace_options import TraceOptions
from tfloss.step.traced_calls import split_static
from tfloss.step.variables import skipped_state
from tfloss.step.watched import Watched, WatchedNames
from tfloss.step.watching import Watching


@dataclasses.dataclass(frozen=True)
class Minimize:
    """Updates groups of variables by the gradient of the losses that a forward pass reports.

    Attributes:
      strategy: The strategy that the step runs under.
      model: The model that the forward pass belongs to.
      groups: The groups that the losses update.
      variables: `{group: variables that it trains}`.
      tags: `{group: what its name adds to the tag of a scalar}`.
      loss_weights: Weights of the losses.
      clip_norm: Global norm that each group's gradient is clipped to, or None.
      fused_adam: Whether Adam is one op for each variable.
      skipping: Decides whether an update is applied.
      options: Options of the trace.
      start: What the guard read before the step, or None.
      layout: What counts as an example.
      frozen: Variables that are frozen for a part of the run.
    """

    strategy: tf.distribute.Strategy
    model: keras.Model
    groups: Mapping[str, Group]
    variables: Mapping[str, Sequence[Any]]
    tags: Mapping[str, str]
    loss_weights: LossWeights
    clip_norm: float | None
    fused_adam: bool
    skipping: Skipping
    options: TraceOptions
    start: Any
    layout: BatchLayout = ROWS_ARE_EXAMPLES
    frozen: Sequence[Any] = ()

    def __call__(
        self,
        forward: Callable[[Any], Any],
        micro_batches: MicroBatches,
        step: tf.Tensor,
        output: OutputBuilder,
    ) -> tuple[dict[str, tf.Tensor], list[BackwardTrace]]:
        """Runs the passes and the update, and adds their results to the output of the step.

        Args:
          forward: Replica code; takes this replica's batch, returns or adds losses.
          micro_batches: The batches of the step.
          step: int64 scalar, the number of completed updates.
          output: Output of the step so far.

        Returns:
          The losses by name; for each combination of groups that can be due, what the trace of
          the passes found out.
        """
        for name, group in self.groups.items():
            # A schedule is read before the update advances it.
            rate = tf.cast(tf.identity(group.optimizer.learning_rate), tf.float32)
            output.add_scalar(f"learning_rate{self.tags[name]}", rate)
        if isinstance(self.loss_weights, Balancer):
            for tag, value in self.loss_weights.scalars().items():
                output.add_scalar(tag, value)
        update_due, traces = split_static(
            functools.partial(self._update, forward, micro_batches, step)
        )
        # The due groups repeat after a period; each combination of them has its own branch.
        period = due_sets(self.groups, [k for k, mine in self.variables.items() if not mine])
        branches = list(dict.fromkeys(period))
        if len(branches) == 1:
            outputs = update_due(branches[0])
        else:
            turn = tf.constant([branches.index(due) for due in period])
            index = tf.gather(turn, tf.math.floormod(step, len(period)))
            calls = [functools.partial(update_due, due) for due in branches]
            outputs = tf.switch_case(index, calls)
        vector, norms, applied, passes, token, summaries, watched = outputs
        traces, names = [one for one, _ in traces], [one for _, one in traces]
        spec = traces[0].spec
        if names[0] is not None:
            output.watched.append(Watched(names[0], *watched))
        by_name = dict(zip(spec.summaries, summaries, strict=True))
        losses = output.add(spec, vector, by_name, self.groups)
        for name, norm in zip(self.groups, norms, strict=False):
            output.add_scalar(f"gradient_norm{self.tags[name]}", norm)
        if self.skipping.active:
            self._add_skipped(output, applied)
        output.updates.append(token)
        output.passed.append(passes[0])
        output.losses_passed.append(passes[1])
        output.graphs += [one.graph for one in traces if one.graph is not None]
        return losses, traces

    def _update(
        self,
        forward: Callable[[Any], Any],
        micro_batches: MicroBatches,
        step: tf.Tensor,
        due: tuple[str, ...],
    ) -> tuple[list[Any], tuple[BackwardTrace, WatchedNames | None]]:
        """Updates the groups that are due; perhaps in a branch.

        Returns:
          The reduced vector, the groups' gradient norms, whether the update was applied, whether
          the check of losses and gradients passed and that of losses, a tensor that comes after it,
          the summaries of each replica and micro-batch, and what is watched; what the trace of the
          passes found out, and the names of what is watched.
        """
        strategy, guard, skipping = self.strategy, self.options.guard, self.skipping
        guarded = None if guard is None else guard.snapshot()
        scale = None if skipping.loss_scale is None else tf.identity(skipping.loss_scale.value)
        states = functools.partial(skipped_state, self.model)
        before = update.read_states(strategy, states) if skipping.active else None
        balance, watching = self._balance(step), self._watching()
        requests = [one for asks in (balance, watching) if asks for one in asks.requests()]
        backward = self._backward(forward, due, requests)
        found = self._gradients(backward, micro_batches, step, scale)
        spec = found.trace.spec
        reached, overwritten = (
            [[self.variables[k][i] for i in indices[k]] for k in due]
            for indices in (spec.reached, spec.overwritten)
        )
        reduced = update.reduce(
            strategy,
            found.vector,
            found.gradients,
            reached,
            [self._sparse_form(self.groups[name]) for name in due],
            scale=scale,
            clip_norm=self.clip_norm,
            norms=skipping.active,
            sums=self.options.check_gradients,
            combine=None if balance is None else balance.combine(found.trace, due),
        )
        check = self._check(spec, reduced, due, balance)
        # Nothing may be counted before there is a batch, let alone a finite loss.
        checked: Any = reduced.vector
        if guard is not None:
            checked = guard(check, micro_batches, guarded, self.start, backward)
        with tf.control_dependencies([checked]):
            token = tf.identity(step)

        if watching is not None:
            watching.read(found.trace)

        def apply() -> None:
            groups = [self.groups[name] for name in due]
            mine = [[*each, *over] for each, over in zip(reached, overwritten, strict=True)]
            fused, gradients = self.fused_adam, reduced.gradients
            update.apply(strategy, self.model, gradients, groups, mine, token, fused_adam=fused)
            if balance is not None:
                balance.update(found.trace, reduced, token)

        applied = tf.constant(True)
        if not skipping.active:
            apply()
        else:
            with tf.control_dependencies([token]):
                restore = functools.partial(update.restore_states, strategy, states, before)
                applied = skipping.decide(check.finite, apply, restore)
        watched, names = [], None
        if watching is not None:
            watched, names = watching.watched(found.trace, reduced, due)
        summaries = list(found.summaries.values())
        known, passed = self._norms(reduced, due), [check.passed, check.losses_passed]
        outputs = [reduced.vector, known, applied, passed, token, summaries, watched]
        return outputs, (found.trace, names)

    def _norms(self, reduced: update.Reduced, due: tuple[str, ...]) -> list[tf.Tensor]:
        """The norm of the gradient of each group, if it was computed; 0 if the group isn't due."""
        if not (self.skipping.active or self.clip_norm is not None):
            return []
        norms = dict(zip(due, reduced.norms, strict=False))
        return [norms.get(name, tf.constant(0.0)) for name in self.groups]

    def _watching(self) -> Watching | None:
        """What is watched, if this step is."""
        if self.options.watch is None:
            return None
        return Watching(self.options.watch, self.strategy, self.model, self.variables)

    def _balance(self, step: tf.Tensor) -> Balance | None:
        """What the balancer does, if the loss weights are one."""
        if not isinstance(self.loss_weights, Balancer):
            return None
        return Balance(self.strategy, self.loss_weights, self.variables, step)

    def _backward(
        self,
        forward: Callable[[Any], Any],
        due: tuple[str, ...],
        requests: Sequence[LossGradientRequest],
    ) -> Backward:
        """The forward and backward pass of one micro-batch."""
        return Backward(
            self.model,
            forward,
            self.variables,
            due,
            self.loss_weights,
            recording=self.options.recording,
            jit=self.options.mode == "step",
            layout=self.layout,
            requests=requests,
            observe=self.options.observe,
            frozen=self.frozen,
        )

    def _gradients(
        self,
        backward: Backward,
        micro_batches: MicroBatches,
        step: tf.Tensor,
        scale: tf.Tensor | None,
    ) -> StepGradients:
        """Runs the forward and backward passes of all micro-batches."""
        strategy, jit = self.strategy, backward.jit
        weights = example_weights(strategy, micro_batches, self.layout)
        normalisers = None
        if len(micro_batches) > 1 or (jit and strategy.num_replicas_in_sync > 1):
            everything = [v for mine in self.variables.values() for v in mine]
            counting = NormaliserPass(self.model, backward.forward, everything, jit)
            normalisers = counting.global_sums(strategy, micro_batches, step)
        return accumulate(
            strategy,
            backward,
            micro_batches,
            weights,
            step=step,
            scale=scale,
            normalisers=normalisers,
        )

    def _sparse_form(self, group: Group) -> Form:
        """The form in which the optimizer of a group gets sparse gradients."""
        norm = self.skipping.active or self.clip_norm is not None
        return sparse_form(group.optimizer, norm=norm, static=self.options.mode == "loop")

    def _check(
        self,
        spec: ReplicaSpec,
        reduced: update.Reduced,
        due: tuple[str, ...],
        balance: Balance | None,
    ) -> FiniteCheck:
        """The values that must be finite, and whether the step is a failure."""
        losses, gradients = spec.losses_and_total(reduced.vector), reduced.norms or reduced.sums
        more = {} if balance is None else balance.must_be_finite(spec, reduced)
        if more:
            losses = tf.concat([losses, tf.stack([value for value, _ in more.values()])], 0)
        skipping = self.skipping
        parts = [(all_finite(losses), skipping.tolerates())]
        if gradients:
            parts.append((all_finite(gradients), skipping.tolerates_gradients()))
        passed = [one if tolerated is None else one | tolerated for one, tolerated in parts]
        return FiniteCheck(
            losses=(*spec.losses, TOTAL, *more),
            groups=due if gradients else (),
            values=losses,
            gradients=gradients,
            finite=functools.reduce(tf.logical_and, [one for one, _ in parts]),
            passed=functools.reduce(tf.logical_and, passed),
            losses_passed=passed[0],
            notes={name: note for name, (_, note) in more.items()},
        )

    def _add_skipped(self, output: OutputBuilder, applied: tf.Tensor) -> None:
        """Counts a decision, and adds it to the output of the step."""
        output.applied.append(applied)
        before = output.scalar("skipped")
        skipped = 1.0 - tf.cast(applied, tf.float32)
        output.add_scalar("skipped", skipped if before is None else tf.maximum(before, skipped))
        if self.skipping.loss_scale is not None:
            output.add_scalar("loss_scale", tf.identity(self.skipping.loss_scale.value))
        output.updates += self.skipping.record(applied)


class TraceWarnings:
    """Warns once of each variable that is not trained, and of each loss of one replica's examples.

    Trace time.
    """

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def warn(self, trace: BackwardTrace) -> None:
        """Warns of the variables and losses that a trace found.

        Args:
          trace: What the trace of the passes found out.
        """
        self._warn_of(
            trace.unreached,
            "No loss reaches these trainable variables, so they are not trained: {}.",
        )
        self._warn_of(
            trace.untracked,
            "The training forward uses trainable tf.Variables that Keras doesn't know, so they "
            "are not trained: {}. Make them with add_weight, and keep their layers as attributes.",
        )
        for text in map(str, trace.partial):
            if text not in self._warned:
                self._warned.add(text)
                warnings.warn(text, stacklevel=2)

    def tell(self, text: str, strategy: tf.distribute.Strategy) -> None:
        """Logs a message once, on the first worker.

        Args:
          text: The message; empty for none.
          strategy: The strategy of the step.
        """
        if text and text not in self._warned:
            self._warned.add(text)
            ChiefLogger(is_chief(strategy)).info(text)

    def warn_of_unbuilt(self, model: keras.Model) -> None:
        """Warns of the layers that a training forward, which built the model, did not call.

        Args:
          model: The model.
        """
        layers = _upstream.layers_by_path(model)
        new = [
            path
            for path, layer in layers
            if not layer.built and _upstream.has_own_build(layer) and path not in self._warned
        ]
        self._warned.update(new)
        if new:
            warnings.warn(
                f"The training forward doesn't call these layers: {', '.join(new)}. They have no "
                "weights and are not trained. If the inference forward calls them, evaluations and "
                "exports use random weights. Call them in the training forward too, or build them "
                "in the model's build() and load their weights.",
                stacklevel=2,
            )

    def _warn_of(self, variables: Sequence[Any], message: str) -> None:
        names = [v.path if isinstance(v, keras.Variable) else v.name for v in variables]
        new = [name for name in names if name not in self._warned]
        self._warned.update(new)
        if new:
            warnings.warn(message.format(", ".join(new)), stacklevel=2)
