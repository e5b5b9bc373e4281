"""One training step: forward, backward, update, on every replica. Traced, once per shape.

    class TrainStep:
        def step(self, batch):                         # override for another algorithm
            return self.minimize(self.forward, batch)

`step` is cross-replica code: `batch` is what the distributed iterator yields and is only
passed on. The function given to `minimize` is replica code: it gets this replica's batch,
as the data set yields it, and reports losses as a model's training forward does.
"""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.data.batches import MicroBatches
from tfloss.errors import LossError, ModelError
from tfloss.forward.losses import LossWeights, Weight
from tfloss.optimizers.ema import Averages, Ema
from tfloss.optimizers.groups import Group, check_disjoint, due_sets, make_groups
from tfloss.optimizers.mixed_precision import LossScale, set_precision
from tfloss.step import update
from tfloss.step.backward import Backward, state_variables
from tfloss.step.example_weights import normaliser_sums, shares
from tfloss.step.output import TOTAL, StepOutput, StepReport
from tfloss.step.variables import Variables

MOST_SKIPPED = 20  # updates left out in a row before the guard takes it for a failure


class TrainStep:
    """Updates a model with the losses that it reports. Subclass it for other algorithms.

    Create it under the strategy's scope, call `build` once, then call it inside
    `tf.function`s, as `tfloss.Trainer` does:

        output = train_step(train_step.take(iterator), recording=False)

    Args:
      model: a Keras model whose `model(batch, training=True)` reports losses.
      optimizer: a Keras optimizer, or groups: `{name: (optimizer, variables)}`; see `Group`.
      loss_weights: `{loss name or glob: float or callable of the step}`.
      clip_norm: the global norm to which each group's gradient, summed over losses and reduced
        over replicas and micro-batches, is clipped before the update. None: no clipping.
      jit: compile forward and backward pass of each replica with XLA.
      accumulate: micro-batches (elements of the data set) in one update, which is that of
        their union: each counts by its number of examples.
      precision: None (as the layers are), "mixed_bfloat16" or "mixed_float16" (with a loss
        scale); see `tfloss.optimizers.mixed_precision`.
      ema: decay of an exponential moving average of all weights, or a `tfloss.Ema`.
      skip_nonfinite: leave out an update whose losses or gradients are not finite, and go on.
        Weights, slots, averages and statistics stay as they were; the step counts, the
        optimizer's iterations don't. After 20 in a row the NaN guard stops the run.
      fused_adam: Adam and AdamW are one op a variable. False: Keras' ops, bit for bit those of
        `fit`.

    Attributes:
      counter: int64 variable, the number of completed steps.
      strategy: the strategy it was created under.
      groups: `{name: Group}`; a single optimizer is the group "optimizer".
      compiled: with `jit`, the graph of what XLA compiles, once it is traced.
      skipping, watches_norms: whether an update may be left out, a bad gradient be a failure.

    Raises:
      ModelError: the model or optimizer was created outside of the strategy's scope.
      LossError: loss_weights that are not numbers or callables.
      ValueError: an argument that makes no sense, by name.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: Any,
        *,
        loss_weights: Mapping[str, Weight] | None = None,
        clip_norm: float | None = None,
        jit: bool = False,
        accumulate: int = 1,
        precision: str | None = None,
        ema: float | Ema | None = None,
        skip_nonfinite: bool = False,
        fused_adam: bool = True,
    ):
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm must be positive or None, got {clip_norm!r}.")
        if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < 1:
            raise ValueError(f"accumulate must be a whole number, at least 1; got {accumulate!r}.")
        self.model = model
        self.groups = make_groups(optimizer)
        self.loss_weights = LossWeights(loss_weights)
        self.clip_norm = clip_norm
        self.jit = jit
        self.accumulate = accumulate
        self.skip_nonfinite = skip_nonfinite
        self.fused_adam = fused_adam
        self.strategy = tf.distribute.get_strategy()
        self.counter = _counter("step")
        self.guard: Any = None  # the engine's
        self.averages: Averages | None = None
        self.compiled: tf.Graph | None = None
        self._precision = precision
        if precision is not None:
            set_precision(model, precision)
        self._loss_scale = LossScale() if precision == "mixed_float16" else None
        self._ema = Ema(ema) if isinstance(ema, float | int) else ema
        self.skipping = skip_nonfinite or self._loss_scale is not None
        self.watches_norms = skip_nonfinite or not (self.skipping or clip_norm is None)
        self._skipped = _counter("skipped")  # in a row
        self._report: StepReport | None = None
        self._warned: set[str] = set()
        self._variables = Variables(model, self.groups, self.strategy)

    # What to override

    def step(self, batch: Any) -> Mapping[str, tf.Tensor]:
        """One training step. Cross-replica code, traced.

        Returns:
          `{name: scalar}`: the losses to show, as `minimize` returned them.
        """
        return self.minimize(self.forward, batch)

    def forward(self, batch: Any) -> Any:
        """The model's training forward on this replica's batch. Replica code."""
        return self.model(batch, training=True)

    # What to use

    def minimize(
        self, forward: Callable[[Any], Any], batch: Any, *, group: str | None = None
    ) -> dict[str, tf.Tensor]:
        """One forward pass, one gradient, one update. Cross-replica code, traced.

        What is minimised is the weighted sum of the losses that `forward` reports (and of
        the weight regularizers of the variables), averaged over the global batch.

        Args:
          forward: replica code; takes the replica's batch, returns or adds losses.
          batch: the batch, as `step` got it.
          group: the optimizer group that all of these losses update. None: every group is
            updated by the losses named after it.

        Returns:
          `{name: float32 scalar}`, the raw losses, averaged over the global batch.

        Raises:
          LossError: a loss that can't be optimised, or that belongs to no group (trace time).
        """
        report = self._current_report()
        groups = self._chosen(group)
        variables = {name: one.trainable(self.model) for name, one in groups.items()}
        check_disjoint(variables)
        micro = batch if isinstance(batch, MicroBatches) else MicroBatches([batch])
        self._report_learning_rates(report, groups)
        step = tf.identity(self.counter)
        made: list[Backward] = []

        def one_update(due: tuple[str, ...]) -> list[Any]:
            backward = Backward(
                self.model,
                forward,
                variables,
                due,
                self.loss_weights,
                recording=report.recording,
                jit=self.jit,
            )
            made.append(backward)
            return self._update(backward, groups, variables, due, micro, step)

        # Which groups are due repeats; each combination has a branch of its own.
        period = due_sets(groups)
        branches = list(dict.fromkeys(period))
        if len(branches) == 1:
            outputs = one_update(branches[0])
        else:
            turn = tf.constant([branches.index(due) for due in period])
            index = tf.gather(turn, step % len(period))
            calls = [functools.partial(one_update, due) for due in branches]
            outputs = tf.switch_case(index, calls)
        vector, norms, applied, token, summaries = outputs
        found = made[0].report
        assert found is not None
        losses = report.add(found, vector, dict(zip(found.summaries, summaries, strict=True)))
        for name, norm in zip(groups, norms, strict=False):
            report.scalars[self._tag("gradient_norm", name)] = norm
        if self.skipping:
            report.applied.append(applied)
            self._report_skipped(report, applied)
        report.updates.append(token)
        return losses

    # What the engine uses

    def take(self, iterator: Any) -> Any:
        """The batch of one step: the next element, or as many as are accumulated. Traced."""
        return self.gathered([next(iterator) for _ in range(self.accumulate)])

    def gathered(self, batches: Sequence[Any]) -> Any:
        """As many batches as are accumulated, as one step takes them."""
        return batches[0] if self.accumulate == 1 else MicroBatches(batches)

    def build(self, element_spec: Any) -> None:
        """Creates the variables of model and optimizers, before the first trace.

        Args:
          element_spec: `tf.TypeSpec`s of one replica's batch. The training forward is
            traced on it once, in a graph that is thrown away: nothing is computed.
        """
        self._variables.build(element_spec, self.forward)
        with self.strategy.scope():
            if self._precision is not None:
                set_precision(self.model, self._precision)  # of layers made meanwhile
            if self._ema is not None and self.averages is None:
                self.averages = Averages(self._ema, self.model)

    @property
    def optimizers(self) -> dict[str, keras.optimizers.Optimizer]:
        """All optimizers by the name of their group; a single one is named `optimizer`."""
        return {name: group.optimizer for name, group in self.groups.items()}

    @property
    def skipped_in_a_row(self) -> tf.Variable:
        """int64: how many of the last updates were left out, one after the other."""
        return self._skipped

    def state(self) -> list[Any]:
        """All `tf.Variable`s that a step may change, but for raw ones of the model."""
        found = [self.counter, *self.model.variables, *self.extra_variables().values()]
        for optimizer in self.optimizers.values():
            found += optimizer.variables
        return [one.value if isinstance(one, keras.Variable) else one for one in found]

    def extra_variables(self) -> dict[str, Any]:
        """More variables that belong in a checkpoint, by name."""
        found: dict[str, Any] = {"skipped": self._skipped} if self.skipping else {}
        if self._loss_scale is not None:
            found |= self._loss_scale.variables()
        if self.averages is not None:
            found |= self.averages.variables()
        return found

    def signature(self) -> tuple:
        """What is frozen when the step is traced; if it changed, the step is traced anew."""
        trainable = tuple(v.path for v in self.model.trainable_variables)
        flags = tuple(layer.trainable for _, layer in _upstream.layers_by_path(self.model))
        return (trainable, flags, self.loss_weights.signature(), self.clip_norm, self.fused_adam)

    def __call__(self, batch: Any, *, recording: bool = False) -> StepOutput:
        """Traces one step: cross-replica code, inside a `tf.function`.

        Args:
          batch: what `take` returned.
          recording: whether the model's summaries are wanted.
        """
        self._report = report = StepReport(recording)
        try:
            shown = dict(self.step(batch))
        finally:
            self._report = None
        self._variables.check_no_new()
        if not report.updates:
            raise LossError(f"{type(self).__name__}.step never called self.minimize(...).")
        self.loss_weights.check_all_used(list(report.losses))
        if self.averages is not None:
            self._average(self.averages, report)
        with tf.control_dependencies(report.updates):
            self.counter.assign_add(1)
        return report.output(shown)

    # How

    def _update(
        self,
        backward: Backward,
        groups: Mapping[str, Group],
        variables: Mapping[str, list[Any]],
        due: tuple[str, ...],
        micro: MicroBatches,
        step: tf.Tensor,
    ) -> list[Any]:
        """Traced, cross-replica; perhaps in a branch.

        Returns vector, the groups' gradient norms, whether it was applied, a tensor that comes
        after the decision, and each summary of each replica and micro-batch.
        """
        strategy, model = self.strategy, self.model
        evidence = [] if self.guard is None else update.read_states(strategy, self.guard.states)
        scale = None if self._loss_scale is None else tf.identity(self._loss_scale.value)
        parts = shares(strategy, micro)
        sums = None
        if len(micro) > 1 or (self.jit and strategy.num_replicas_in_sync > 1):
            sums = normaliser_sums(strategy, backward.count, model, micro, step)
        states = functools.partial(state_variables, model)
        before = update.read_states(strategy, states) if self.skipping else None

        vector, gradients, summaries = update.accumulate(
            strategy, backward, micro, parts, (step, scale, sums)
        )
        self.compiled = backward.graph
        self._warn(backward)
        report = backward.report
        assert report is not None
        reduced = update.reduce(
            strategy,
            vector,
            gradients,
            scale=scale,
            clip_norm=self.clip_norm,
            norms=self.skipping,
        )
        norms = dict(zip(due, reduced.norms, strict=False))
        names, watched = [*report.losses, TOTAL], report.watched(reduced.vector)
        if self.watches_norms:
            names += [self._tag("gradient_norm", name) for name in norms]
            watched = tf.concat([watched, list(norms.values())], 0)
        # Nothing may be counted before there is a batch, let alone a finite loss.
        check: Any = reduced.vector
        if self.guard is not None:
            tolerated = self._skipped < MOST_SKIPPED if self.skip_nonfinite else None
            check = self.guard(names, watched, micro, evidence, tolerated)
        with tf.control_dependencies([check]):
            token = tf.identity(step)
        reached = [[variables[k][i] for i in report.reached[k]] for k in due]

        def apply() -> tf.Tensor:
            mine = [groups[k] for k in due]
            update.apply(
                strategy, reduced.gradients, mine, reached, token, fused_adam=self.fused_adam
            )
            return tf.constant(True)

        def leave_out() -> tf.Tensor:
            update.restore_states(strategy, states, before)
            return tf.constant(False)

        applied = tf.constant(True)
        if not self.skipping:
            apply()
        else:
            finite = tf.reduce_all(tf.math.is_finite(tf.concat([watched, [*norms.values()]], 0)))
            with tf.control_dependencies([token]):
                applied = tf.cond(finite, apply, leave_out)
        asked = self.skipping or self.clip_norm is not None
        known = [norms.get(name, tf.constant(0.0)) for name in groups] if asked else []
        return [reduced.vector, known, applied, token, summaries]

    def _average(self, averages: Averages, report: StepReport) -> None:
        """Moves the averages, if an update was made. Traced, cross-replica."""

        def move() -> tf.Tensor:
            self.strategy.run(tf.autograph.experimental.do_not_convert(averages.update))
            return tf.constant(True)

        with tf.control_dependencies(report.updates):
            if report.applied:
                tf.cond(tf.reduce_any(report.applied), move, lambda: tf.constant(False))
            else:
                move()

    def _report_skipped(self, report: StepReport, applied: tf.Tensor) -> None:
        skipped = tf.where(applied, tf.zeros([], tf.int64), self._skipped + 1)
        report.updates.append(tf.identity(self._skipped.assign(skipped)))
        before = report.scalars.get("skipped", tf.constant(0.0))
        report.scalars["skipped"] = tf.maximum(before, 1.0 - tf.cast(applied, tf.float32))
        if self._loss_scale is not None:
            report.scalars["loss_scale"] = tf.identity(self._loss_scale.value)
            report.updates += [tf.identity(x) for x in self._loss_scale.update(applied)]

    def _report_learning_rates(self, report: StepReport, groups: Mapping[str, Group]) -> None:
        """The rates of this update; a schedule is read before the update moves it on."""
        for name, group in groups.items():
            rate = tf.cast(tf.identity(group.optimizer.learning_rate), tf.float32)
            report.scalars[self._tag("learning_rate", name)] = rate

    def _tag(self, what: str, group: str) -> str:
        return what if len(self.groups) == 1 else f"{what}/{group}"

    def _warn(self, backward: Backward) -> None:
        """Tells once of each variable that will not be trained."""
        for found, what in (
            (
                backward.unreached,
                "No loss reaches these trainable variables, so they are not trained: {}.",
            ),
            (
                backward.untracked,
                "The training forward uses trainable tf.Variables that Keras doesn't know, so they "
                "are not trained: {}. Make them with add_weight.",
            ),
        ):
            names = [v.path if isinstance(v, keras.Variable) else v.name for v in found]
            new = [name for name in names if name not in self._warned]
            self._warned.update(new)
            if new:
                warnings.warn(what.format(", ".join(new)), stacklevel=2)

    def _current_report(self) -> StepReport:
        if self._report is None:
            raise RuntimeError("minimize() may only be called from TrainStep.step().")
        return self._report

    def _chosen(self, group: str | None) -> dict[str, Group]:
        if group is None:
            return self.groups
        if group not in self.groups:
            raise ModelError(
                f"minimize(group={group!r}): the optimizer groups are {', '.join(self.groups)}."
            )
        return {group: self.groups[group]}


def _counter(name: str) -> tf.Variable:
    return tf.Variable(
        tf.constant(0, tf.int64),
        trainable=False,
        name=name,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )
