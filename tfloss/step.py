"""One training step: forward, backward, update, on every replica. Traced, once per shape.

    class TrainStep:
        def step(self, batch):                         # override for another algorithm
            return self.minimize(self.forward, batch)

`step` is cross-replica code: `batch` is what the distributed iterator yields and is only
passed on. The function given to `minimize` is replica code: it gets this replica's batch,
as the data set yields it, and reports losses as a model's training forward does.
"""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfloss import _upstream
from tfloss.context import Recorded, forward_context
from tfloss.errors import LossError, ModelError, SummaryError, TflossError
from tfloss.losses import LossWeights, Weight, check_reaches_variables, collect

TOTAL = "total"


@dataclasses.dataclass
class StepOutput:
    """What one traced step reports, reduced over replicas.

    Attributes:
      scalars: `{tag: float32 scalar}`: `losses/<name>`, `losses/total`, and whatever else is
        known on every step; the model's scalar summaries where they are due.
      summaries: the other summaries that are due.
    """

    scalars: dict[str, tf.Tensor]
    summaries: list[Recorded]


@dataclasses.dataclass
class _Report:
    """What the `minimize` calls of one step have reported so far (trace time)."""

    recording: bool
    losses: dict[str, tf.Tensor] = dataclasses.field(default_factory=dict)
    weighted: dict[str, tf.Tensor] = dataclasses.field(default_factory=dict)
    totals: list[tf.Tensor] = dataclasses.field(default_factory=list)
    scalars: dict[str, tf.Tensor] = dataclasses.field(default_factory=dict)
    summaries: dict[str, Recorded] = dataclasses.field(default_factory=dict)
    applied: list[tf.Tensor] = dataclasses.field(default_factory=list)


class TrainStep:
    """Updates a model with the losses that it reports. Subclass it for other algorithms.

    Create it under the strategy's scope, call `build` once, then call it inside
    `tf.function`s, as `tfloss.Trainer` does:

        output = train_step(batch, recording=False)

    Args:
      model: a Keras model whose `model(batch, training=True)` reports losses.
      optimizer: a Keras optimizer. A subclass that makes several updates may take a
        mapping `{name: optimizer}` and pass one of them to each `minimize`.
      loss_weights: `{loss name or glob: float or callable of the step}`.
      clip_norm: the global norm to which the gradient, summed over losses and reduced over
        replicas, is clipped before the update. None: no clipping.
      jit: compile forward and backward pass of each replica with XLA.

    Attributes:
      counter: int64 variable, the number of completed updates.
      strategy: the strategy it was created under.

    Raises:
      ModelError: the model or optimizer was created outside of the strategy's scope.
      LossError: loss_weights that are not numbers or callables.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer | Mapping[str, keras.optimizers.Optimizer],
        *,
        loss_weights: Mapping[str, Weight] | None = None,
        clip_norm: float | None = None,
        jit: bool = False,
    ):
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm must be positive or None, got {clip_norm!r}.")
        self.model = model
        self.optimizer = optimizer
        self.loss_weights = LossWeights(loss_weights)
        self.clip_norm = clip_norm
        self.jit = jit
        self.strategy = tf.distribute.get_strategy()
        self.counter = tf.Variable(
            0,
            dtype=tf.int64,
            trainable=False,
            name="step",
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )
        self.guard: Callable[..., tf.Tensor] | None = None
        self._report: _Report | None = None
        self._warned: set[str] = set()

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
        self,
        forward: Callable[[Any], Any],
        batch: Any,
        *,
        optimizer: keras.optimizers.Optimizer | None = None,
        variables: Sequence[Any] | None = None,
    ) -> dict[str, tf.Tensor]:
        """One forward pass, one gradient, one update. Cross-replica code, traced.

        What is minimised is the weighted sum of the losses that `forward` reports (and of
        the weight regularizers of `variables`), averaged over replicas.

        Args:
          forward: replica code; takes the replica's batch, returns or adds losses.
          batch: the batch, as `step` got it.
          optimizer: by default `self.optimizer`.
          variables: what to update; by default the model's trainable variables.

        Returns:
          `{name: float32 scalar}`, the raw losses averaged over replicas.

        Raises:
          LossError: a loss that can't be optimised (trace time).
        """
        report = self._current_report()
        optimizer = optimizer or self._only_optimizer()
        variables = list(self.model.trainable_variables if variables is None else variables)
        if not variables:
            raise ModelError("There is nothing to train: the model has no trainable variables.")
        step = tf.identity(self.counter)
        traced: dict[str, Any] = {}

        def gradients(replica_batch):
            return self._gradients(forward, replica_batch, variables, step, traced)

        random_states = self._random_states()
        values, grads, summaries = self.strategy.run(gradients, args=(batch,))
        named = dict(zip(traced["names"], tf.unstack(self._any_replica(values)), strict=True))
        self._keep(report, named, summaries, traced)
        if report.recording:
            self._keep_learning_rate(report, optimizer)
        losses = {name: named[f"losses/{name}"] for name in traced["losses"]}
        with tf.control_dependencies(self._guards(named, batch, random_states)):
            token = tf.identity(step)

        def apply(replica_grads):
            with (
                tf.control_dependencies([token]),
                _upstream.gradients_already_reduced(optimizer),
            ):
                optimizer.apply(replica_grads, [variables[i] for i in traced["reached"]])

        self.strategy.run(apply, args=(grads,))
        report.applied.append(token)
        return losses

    # What the engine uses

    def build(self, element_spec: Any) -> None:
        """Creates the variables of model and optimizer, before the first trace.

        Args:
          element_spec: `tf.TypeSpec`s of one replica's batch. The training forward is
            traced on it once, in a graph that is thrown away: nothing is computed.
        """
        with self.strategy.scope():
            if not self.model.built:
                _trace_once(self.forward, element_spec, self.model)
            for optimizer in self.optimizers.values():
                if not optimizer.built:
                    optimizer.build(self.model.trainable_variables)
        self._check_scope()

    @property
    def optimizers(self) -> dict[str, keras.optimizers.Optimizer]:
        """All optimizers by name; a single one is named `optimizer`."""
        if isinstance(self.optimizer, Mapping):
            return dict(self.optimizer)
        return {"optimizer": self.optimizer}

    def signature(self) -> tuple:
        """What is frozen when the step is traced; if it changed, the step is traced anew."""
        trainable = tuple(v.path for v in self.model.trainable_variables)
        flags = tuple(layer.trainable for layer in _upstream.all_layers(self.model))
        return (trainable, flags, self.loss_weights.signature(), self.clip_norm, self.jit)

    def __call__(self, batch: Any, *, recording: bool = False) -> StepOutput:
        """Traces one step: cross-replica code, inside a `tf.function`.

        Args:
          batch: one element of the (distributed) iterator.
          recording: whether the model's summaries are wanted.
        """
        self._report = report = _Report(recording)
        try:
            shown = dict(self.step(batch))
        finally:
            self._report = None
        if not report.totals:
            raise LossError(f"{type(self).__name__}.step never called self.minimize(...).")
        self.loss_weights.check_all_used(list(report.losses))
        with tf.control_dependencies(report.applied):
            self.counter.assign_add(1)
        scalars = {f"losses/{name}": tf.cast(value, tf.float32) for name, value in shown.items()}
        scalars[f"losses/{TOTAL}"] = sum(report.totals[1:], report.totals[0])
        for name, value in report.weighted.items():
            scalars[f"weighted_losses/{name}"] = value
        for name, value in report.scalars.items():
            if name in scalars:
                raise SummaryError(f"Summary {name!r} has the name of a loss's own curve.")
            scalars[name] = value
        return StepOutput(scalars, list(report.summaries.values()))

    # How

    def _gradients(
        self,
        forward: Callable[[Any], Any],
        batch: Any,
        variables: list[Any],
        step: tf.Tensor,
        traced: dict[str, Any],
    ) -> tuple[tf.Tensor, list[Any], dict[str, tf.Tensor]]:
        """Replica code: ([values], gradients, summaries), the first two reduced."""
        recording = self._current_report().recording
        weights = self.loss_weights
        replicas = self.strategy.num_replicas_in_sync
        local: dict[str, Any] = {}

        def compute(batch, step):
            with tf.GradientTape() as tape, _upstream.inputs_untouched(self.model):
                with forward_context(step, recording) as context:
                    returned = forward(batch)
                losses = collect(returned, context, variables)
                check_reaches_variables(losses, returned, variables)
                weighted = weights.apply(losses, step)
                terms = list(weighted.values())
                total = sum(terms[1:], terms[0])
                # Gradients are summed over replicas below, so this makes it their mean.
                objective = total / replicas if replicas > 1 else total
            with context.backward():
                grads = tape.gradient(objective, [_tf_variable(v) for v in variables])
            reached = [i for i, g in enumerate(grads) if g is not None]
            self._warn_unreached([v for v, g in zip(variables, grads, strict=True) if g is None])
            scalars = {f"losses/{name}": value for name, value in losses.items()}
            scalars[TOTAL] = total
            for name, value in weighted.items():
                if value is not losses[name]:
                    scalars[f"weighted_losses/{name}"] = value
            summed = []
            for one in context.summaries.values():
                if one.kind == "scalar":
                    scalars[f"summary/{one.name}"] = one.value
                    if one.reduce == "sum":
                        summed.append(f"summary/{one.name}")
            rest = {k: v for k, v in context.summaries.items() if v.kind != "scalar"}
            local.update(
                names=list(scalars),
                summed=summed,
                losses=list(losses),
                summaries=rest,
                reached=reached,
            )
            return (
                tf.stack(list(scalars.values())),
                [g for g in grads if g is not None],
                {k: v.value for k, v in rest.items()},
            )

        if self.jit:
            compute = tf.function(compute, jit_compile=True, autograph=False)
        values, grads, summaries = compute(batch, step)
        names = list(local["names"])
        if replicas > 1:
            context = tf.distribute.get_replica_context()
            reduced = context.all_reduce(tf.distribute.ReduceOp.SUM, [values, *grads])
            scale = [1.0 if n in local["summed"] else 1.0 / replicas for n in names]
            values, grads = reduced[0] * tf.constant(scale, tf.float32), reduced[1:]
        if self.clip_norm is not None:
            norm = tf.linalg.global_norm(grads)
            grads, _ = tf.clip_by_global_norm(grads, self.clip_norm, use_norm=norm)
            values = tf.concat([values, [tf.cast(norm, tf.float32)]], 0)
            names.append("gradient_norm")
        traced.update(local, names=names)  # the same on every replica
        return values, grads, summaries

    def _keep(
        self,
        report: _Report,
        named: Mapping[str, tf.Tensor],
        summaries: Any,
        traced: Mapping[str, Any],
    ) -> None:
        """Adds what one `minimize` saw to the report of the step."""
        report.totals.append(named[TOTAL])
        for name, value in named.items():
            kind, _, rest = name.partition("/")
            if kind == "losses":
                if rest in report.losses:
                    raise LossError(
                        f"Two `minimize` calls of one step report a loss named {rest!r}. Return "
                        "a mapping with another name from one of them."
                    )
                report.losses[rest] = value
            elif kind == "weighted_losses":
                report.weighted[rest] = value
            elif kind == "summary":
                self._keep_unique(report.scalars, rest, value)
            elif name == "gradient_norm":
                number = len(report.totals)
                report.scalars[name if number == 1 else f"{name}_{number - 1}"] = value
        for name, recorded in traced["summaries"].items():
            values = self.strategy.experimental_local_results(summaries[name])
            merged = tf.concat(values, 0) if recorded.kind == "histogram" else values[0]
            self._keep_unique(report.summaries, name, dataclasses.replace(recorded, value=merged))

    def _keep_learning_rate(self, report: _Report, optimizer: keras.optimizers.Optimizer) -> None:
        """The rate of this update; a schedule is read before the update moves it on."""
        for name, one in self.optimizers.items():
            if one is optimizer:
                several = isinstance(self.optimizer, Mapping)
                tag = f"learning_rate/{name}" if several else "learning_rate"
                report.scalars[tag] = tf.cast(tf.identity(one.learning_rate), tf.float32)

    @staticmethod
    def _keep_unique(into: dict, name: str, value: Any) -> None:
        if name in into:
            raise SummaryError(
                f"Summary {name!r} is recorded by two `minimize` calls of one step. Wrap one "
                "in `with tfloss.summary.scope('...')`."
            )
        into[name] = value

    def _random_states(self) -> dict[str, tf.Tensor]:
        """The seed generators' states before the forward pass moves them on."""
        if self.guard is None:
            return {}
        return {
            name: tf.identity(_tf_variable(variable))
            for name, variable in seed_states(self.model).items()
        }

    def _guards(
        self, named: Mapping[str, tf.Tensor], batch: Any, before: dict[str, tf.Tensor]
    ) -> list[tf.Tensor]:
        """What must have run before the update: the check that the losses are finite."""
        if self.guard is None:
            return []
        watched = {
            name.removeprefix("losses/"): value
            for name, value in named.items()
            if name.startswith("losses/") or name in (TOTAL, "gradient_norm")
        }
        return [self.guard(watched, batch, before)]

    def _warn_unreached(self, unreached: list[Any]) -> None:
        names = [v.path if isinstance(v, keras.Variable) else v.name for v in unreached]
        new = [name for name in names if name not in self._warned]
        self._warned.update(new)
        if new:
            warnings.warn(
                f"No loss reaches these trainable variables, so they are not trained: "
                f"{', '.join(new)}.",
                stacklevel=2,
            )

    def _current_report(self) -> _Report:
        if self._report is None:
            raise RuntimeError("minimize() may only be called from TrainStep.step().")
        return self._report

    def _only_optimizer(self) -> keras.optimizers.Optimizer:
        if isinstance(self.optimizer, Mapping):
            raise ModelError(
                f"{type(self).__name__} has several optimizers ({', '.join(self.optimizer)}): "
                "say which one with minimize(..., optimizer=...)."
            )
        return self.optimizer

    def _any_replica(self, value: Any) -> Any:
        return self.strategy.experimental_local_results(value)[0]

    def _check_scope(self) -> None:
        """Raises ModelError if a variable belongs to another strategy."""
        extended = self.strategy.extended
        for what, variables in (
            ("model", self.model.variables),
            *((f"optimizer {n!r}", o.variables) for n, o in self.optimizers.items()),
        ):
            for variable in variables:
                if not extended.variable_created_in_scope(_tf_variable(variable)):
                    raise ModelError(
                        f"The {what} was created outside of the scope of "
                        f"{type(self.strategy).__name__} (variable {variable.path!r}). Create "
                        "model and optimizer inside `with strategy.scope():`."
                    )


def _tf_variable(variable: Any) -> Any:
    return variable.value if isinstance(variable, keras.Variable) else variable


def seed_states(model: keras.Model) -> dict[str, keras.Variable]:
    """The states of all Keras seed generators in a model, by position: Dropout's, ..."""
    found = [v for v in model.variables if v.name == "seed_generator_state"]
    return {f"seed_generator_{i}": v for i, v in enumerate(found)}


def _trace_once(forward: Callable[[Any], Any], element_spec: Any, model: keras.Model) -> None:
    """Builds the model by tracing its training forward, without computing anything."""

    def dry_run(batch):
        with contextlib.ExitStack() as stack:
            stack.enter_context(_upstream.inputs_untouched(model))
            forward(batch)

    try:
        tf.function(dry_run, autograph=False).get_concrete_function(element_spec)
    except Exception as error:
        raise _upstream.innermost(error, TflossError) from None
    if not model.built:
        raise ModelError(f"Calling {model.name!r} did not build it.")


def host_scalars(names: Sequence[str], values: Any) -> dict[str, float]:
    """`{name: float}` of a row of step values."""
    return dict(zip(names, np.asarray(values).tolist(), strict=True))
