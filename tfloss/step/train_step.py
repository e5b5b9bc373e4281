"""One training step: forward, backward, update, on every replica. Traced.

    class MyStep(tfloss.TrainStep):
        def step(self, batch):                         # override for another algorithm
            return self.minimize(self.forward, batch)

`step` is cross-replica code. Its `batch` is one element of the distributed iterator, or with
`accumulate` a `MicroBatches` of several. `step` only passes it on to `minimize`. The function given
to `minimize` is replica code: it gets this replica's part of one element, and reports losses as a
model's training forward does.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.balancing import Balancer
from tfloss.data.batch_layout import ROWS_ARE_EXAMPLES, BatchLayout
from tfloss.data.batches import MicroBatches
from tfloss.errors import LossError, ModelError
from tfloss.forward.losses import LossWeights, Weight
from tfloss.inspect.python_values import PythonValues, names_read
from tfloss.optimizers import hyperparameters
from tfloss.optimizers.ema import Averages, Ema
from tfloss.optimizers.groups import SINGLE, check_disjoint, make_groups, shared_losses
from tfloss.optimizers.mixed_precision import LossScale, set_precision
from tfloss.step.forward_errors import check_call, check_step_result
from tfloss.step.freezing import Freezing
from tfloss.step.minimize import Minimize, TraceWarnings
from tfloss.step.output import OutputBuilder, StepOutput
from tfloss.step.skipping import Skipping, counter
from tfloss.step.trace_options import TraceOptions
from tfloss.step.variables import Variables


class TrainStep:
    """Updates a model with the losses that it reports. Subclass it for other algorithms.

    Create it under the strategy's scope, call `build` once, then call it inside
    `tf.function`s, as `tfloss.Trainer` does:

        output = train_step(train_step.take(iterator))

    Args:
      model: A Keras model whose `model(batch, training=True)` reports losses.
      optimizer: A Keras optimizer, or groups: `{name: (optimizer, variables)}`; see `Group`.
        None: the step can't be trained, only restored and evaluated.
      loss_weights: `{loss name or glob: float, scalar variable or callable of the step}`. Or one
        of `tfloss.balancing`, which finds weights or gradients in training.
      clip_norm: Global norm to which each group's gradient, summed over losses and reduced
        over replicas and micro-batches, is clipped before the update. None: no clipping.
      accumulate: Number of micro-batches (elements of the data set) in one update. The update
        equals that of one batch with all examples of the micro-batches.
      precision: None (as the layers are), "mixed_bfloat16" or "mixed_float16" (with a loss
        scale); see `tfloss.optimizers.mixed_precision`.
      ema: Decay of an exponential moving average of all weights, or a `tfloss.Ema`.
      skip_nonfinite: Whether to skip an update whose losses or gradients are not finite, and to
        continue. Weights, slots, averages and statistics keep their values. The step counter
        advances; the optimizer's iterations don't. After 20 skipped updates in a row, one more
        bad update stops the run, if it has a `NaNGuard`.
      fused_adam: Whether Adam and AdamW are one op for each variable. False: Keras's ops, bit
        for bit those of `fit`.
      batch_layout: Which tensors of a batch hold examples, and what counts as one, if first
        dimensions differ; see `tfloss.data.BatchLayout`.

    Attributes:
      counter: int64 variable, the number of completed steps.
      strategy: The strategy it was created under.
      groups: `{name: Group}`; a single optimizer is the group "optimizer".
      averages: Averages of the weights, with `ema`, after `build`.
      skipping: Decides whether an update is applied, and counts those that are not.
      freezing: What is frozen for a part of the run.
      weighted_losses: `{name of a curve: name by which its loss is weighted}`, of the last trace.

    Raises:
      ModelError: The model or optimizer was created outside of the strategy's scope.
      LossError: A loss weight is not a number, a variable or a callable.
      ValueError: An argument has a value that it can't have; the message names it.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: Any,
        *,
        loss_weights: Mapping[str, Weight] | Balancer | None = None,
        clip_norm: float | None = None,
        accumulate: int = 1,
        precision: str | None = None,
        ema: float | Ema | None = None,
        skip_nonfinite: bool = False,
        fused_adam: bool = True,
        batch_layout: BatchLayout = ROWS_ARE_EXAMPLES,
    ):
        if clip_norm is not None and (isinstance(clip_norm, bool) or not clip_norm > 0):
            raise ValueError(f"clip_norm must be positive or None, got {clip_norm!r}.")
        _check_accumulate(accumulate)
        self.model = model
        self.groups = make_groups(optimizer)
        self.loss_weights = (
            loss_weights if isinstance(loss_weights, Balancer) else LossWeights(loss_weights)
        )
        self.clip_norm = clip_norm
        self.accumulate = accumulate
        self.fused_adam = fused_adam
        if not isinstance(cast(Any, batch_layout), BatchLayout):
            raise ValueError(f"batch_layout must be a tfloss.data.BatchLayout: {batch_layout!r}.")
        self.batch_layout = batch_layout
        self.strategy = tf.distribute.get_strategy()
        self.counter = counter("step")
        self.averages: Averages | None = None
        self.freezing = Freezing(model)
        self.weighted_losses: dict[str, str] = {}
        self._precision = precision
        if precision is not None:
            set_precision(model, precision)
        loss_scale = LossScale() if precision == "mixed_float16" else None
        self.skipping = Skipping(skip_nonfinite, loss_scale)
        self._ema = Ema(ema) if isinstance(ema, float | int) else ema
        # While `step` runs: options, output so far, what the guard read before the step.
        self._tracing: tuple[TraceOptions, OutputBuilder, Any] | None = None
        self._untrained = TraceWarnings()
        self._variables = Variables(model, self.groups, self.strategy)

    # What to override

    def step(self, batch: Any) -> Mapping[str, tf.Tensor]:
        """Runs one training step. Cross-replica code, traced.

        Args:
          batch: The batch of all replicas; it is only passed on to `minimize`.

        Returns:
          `{name: scalar}`: the losses to show, as `minimize` returned them.
        """
        return self.minimize(self.forward, batch)

    def forward(self, batch: Any) -> Any:
        """Runs the model's training forward. Replica code, traced.

        Args:
          batch: This replica's batch.

        Returns:
          A loss or a mapping of losses; None if all of them are added.
        """
        return self.model(batch, training=True)

    # What to use

    def minimize(
        self, forward: Callable[[Any], Any], batch: Any, *, group: str | None = None
    ) -> dict[str, tf.Tensor]:
        """Runs one forward pass, computes one gradient, applies one update.

        Cross-replica code, traced. It minimises the weighted sum of the losses that `forward`
        reports (and of the weight regularizers of the variables), averaged over the global batch.
        A call for the same groups with the same names repeats an earlier one of the step: their
        curves are means over the calls.

        Args:
          forward: Replica code; takes the replica's batch, returns or adds losses.
          batch: The batch, as `step` got it.
          group: The optimizer group that all of these losses update. None: each group is
            updated by the losses named after it, and by those that are named after no group.

        Returns:
          `{name: float32 scalar}`, the raw losses, averaged over the global batch.

        Raises:
          LossError: A loss can't be optimised, its name is nearly that of a group, or no loss
            reaches a group (trace time).
          ModelError: There is no such group.
        """
        if self._tracing is None:
            raise RuntimeError("minimize() may only be called from TrainStep.step().")
        options, output, start = self._tracing
        if not self.groups:
            raise ModelError("minimize() needs an optimizer, and this training step has none.")
        if group is not None and group not in self.groups:
            known = ", ".join(map(repr, self.groups))
            raise ModelError(
                f"minimize(group={group!r}): "
                + (
                    "there are no groups, but one optimizer. Leave group out, or give the Trainer "
                    "{name: (optimizer, layer), ...}."
                    if list(self.groups) == [SINGLE]
                    else f"the optimizer groups are {known}."
                )
            )
        groups = self.groups if group is None else {group: self.groups[group]}
        variables = {name: one.trainable(self.model) for name, one in groups.items()}
        frozen = self.freezing.variables()
        ids = {id(one) for one in frozen}
        may_be_empty = [
            name
            for name, one in groups.items()
            if ids.intersection(map(id, one.weights(self.model)))
        ]
        check_disjoint(variables, may_be_empty)
        minimize = Minimize(
            self.strategy,
            self.model,
            groups,
            variables,
            tags={name: "" if len(self.groups) == 1 else f"/{name}" for name in groups},
            loss_weights=self.loss_weights,
            clip_norm=self.clip_norm,
            fused_adam=self.fused_adam,
            skipping=self.skipping,
            options=options,
            start=start,
            layout=self.batch_layout,
            frozen=frozen,
        )
        micro_batches = batch if isinstance(batch, MicroBatches) else MicroBatches([batch])
        losses, traces = minimize(forward, micro_batches, tf.identity(self.counter), output)
        for trace in traces:
            self._untrained.warn(trace)
        if group is None:
            self._untrained.tell(shared_losses(losses, self.groups), self.strategy)
        return losses

    # What the engine uses

    def take(self, iterator: Any) -> Any:
        """The batch of one step: the next element, or as many as are accumulated. Traced.

        Args:
          iterator: Iterator of a data set, distributed or not.
        """
        return self.gathered([next(iterator) for _ in range(self.accumulate)])

    def gathered(self, batches: Sequence[Any]) -> Any:
        """The batch of one step, from the elements of the data set that it consists of.

        Args:
          batches: As many elements as are accumulated.
        """
        return batches[0] if self.accumulate == 1 else MicroBatches(batches)

    def build(self, element_spec: Any) -> None:
        """Creates the variables of model and optimizers, before the first trace. Host code.

        Args:
          element_spec: `tf.TypeSpec`s of one replica's batch. The training forward is
            traced on it once, in a graph that is thrown away: nothing is computed.
        """
        if type(self).forward is TrainStep.forward:
            check_call(self.model)
        own_step = type(self).step is not TrainStep.step
        self._variables.build(element_spec, self.forward, own_step=own_step)
        self._untrained.warn_of_unbuilt(self.model)
        with self.strategy.scope():
            if self._precision is not None:
                set_precision(self.model, self._precision)  # of layers made meanwhile
            if self._ema is not None and self.averages is None:
                self.averages = Averages(self._ema, self.model)
            if isinstance(self.loss_weights, Balancer):
                self.loss_weights.build(self)

    @property
    def optimizers(self) -> dict[str, keras.optimizers.Optimizer]:
        """All optimizers by the name of their group; a single one is named `optimizer`."""
        return {name: group.optimizer for name, group in self.groups.items()}

    def state(self) -> list[Any]:
        """All `tf.Variable`s that a step may change, except for raw ones of the model."""
        found = [self.counter, *self.model.variables, *self.extra_variables().values()]
        for optimizer in self.optimizers.values():
            found += optimizer.variables
        return [one.value if isinstance(one, keras.Variable) else one for one in found]

    def state_bytes(self) -> int:
        """The size of `state`."""
        return sum(one.dtype.size * one.shape.num_elements() for one in self.state())

    def extra_variables(self) -> dict[str, Any]:
        """Further variables that belong in a checkpoint, by name."""
        averages = {} if self.averages is None else self.averages.variables()
        weights = self.loss_weights.state() if isinstance(self.loss_weights, Balancer) else {}
        return {**self.skipping.variables(), **averages, **weights}

    def signature(self) -> tuple[Any, ...]:
        """What is frozen when the step is traced. If it changes, the step is traced again."""
        trainable = tuple(v.path for v in self.model.trainable_variables)
        flags = tuple(layer.trainable for _, layer in _upstream.layers_by_path(self.model))
        return (
            trainable,
            flags,
            _upstream.derived_state(self.model),
            self.loss_weights.signature(),
            self.clip_norm,
            self.fused_adam,
            hyperparameters.signature(self.optimizers),
        )

    def settings(self) -> dict[str, Any]:
        """The options of the step, as JSON values, to compare several workers. Host code."""
        ema = self._ema
        return {
            "class": type(self).__qualname__,
            "groups": list(self.groups),
            "loss_weights": self.loss_weights.described(),
            "clip_norm": self.clip_norm,
            "accumulate": self.accumulate,
            "precision": self._precision,
            "ema": None if ema is None else repr(ema),
            "skip_nonfinite": self.skipping.tolerated > 0,
            "fused_adam": self.fused_adam,
            "batch_layout": repr(self.batch_layout),
        }

    def python_values(self) -> PythonValues:
        """The plain Python values that tracing the step reads. They are frozen then. Host code."""
        values = PythonValues()
        values.add_layers(self.model)
        values.add_methods(self, ["step", "forward"], "the training step")
        called = [*names_read(type(self).step), *names_read(type(self).forward)]
        values.add_methods(self.model, called, f"layer {self.model.name!r}")
        for name, weight in self.loss_weights.functions().items():
            values.add_function(weight, f"loss_weights[{name!r}]")
        for name, optimizer in self.optimizers.items():
            rate = _upstream.learning_rate_function(optimizer)
            if rate is not None:
                values.add_function(rate, f"the learning rate of {name!r}")
        return values

    def __call__(self, batch: Any, options: TraceOptions | None = None) -> StepOutput:
        """Traces one step. Cross-replica code, inside a `tf.function`.

        Args:
          batch: The batch, as `take` returned it.
          options: Options of this trace; by default those of `TraceOptions()`.
        """
        output, options, start = OutputBuilder(), options or TraceOptions(), None
        if options.guard is not None and type(self).step is not TrainStep.step:
            start = options.guard.snapshot_all()
        self._tracing = options, output, start
        try:
            shown = self.step(batch)
        finally:
            self._tracing = None
        self._variables.check_no_new()
        if not output.updates:
            raise LossError(f"{type(self).__name__}.step never called self.minimize(...).")
        self.loss_weights.check_all_used(output.pattern_names)
        self.weighted_losses = {curve: name for name, curve in output.pattern_names.items()}
        with tf.control_dependencies(output.updates):
            if self.averages is not None:
                self.averages.update(self.strategy, output.applied)
            self.counter.assign_add(1)
        check_step_result(self.step, shown)
        return output.build(shown)


def _check_accumulate(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"accumulate must be an integer, at least 1; got {value!r}.")
