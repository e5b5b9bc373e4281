"""One training step: forward, backward, update, on every replica. Traced, once per shape.

    class TrainStep:
        def step(self, batch):                         # override for another algorithm
            return self.minimize(self.forward, batch)

`step` is cross-replica code: `batch` is what the distributed iterator yields and is only
passed on. The function given to `minimize` is replica code: it gets this replica's batch,
as the data set yields it, and reports losses as a model's training forward does.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.context import forward_context
from tfloss.errors import LossError, ModelError, TflossError
from tfloss.losses import LossWeights, Weight, check_reaches_variables, collect
from tfloss.report import ReplicaReport, StepOutput, StepReport
from tfloss.seeds import split_seeds


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
            tf.constant(0, tf.int64),
            trainable=False,
            name="step",
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )
        self.guard: Callable[..., tf.Tensor] | None = None
        self._report: StepReport | None = None
        self._warned: set[str] = set()
        self._known: set[int] = set()
        self._built_for: dict[str, set[int]] = {}

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
        before = self._random_states()
        replica_report: list[ReplicaReport] = []
        clipped = self.clip_norm is not None

        def gradients(replica_batch):
            found, *tensors = self._gradients(forward, replica_batch, variables, step)
            replica_report[:] = [found]  # the same on every replica
            return tuple(tensors)

        values, grads, summaries, norm = self.strategy.run(gradients, args=(batch,))
        (replica,) = replica_report
        local = self.strategy.experimental_local_results
        each = {name: local(value) for name, value in summaries.items()}
        watched = report.add(replica, local(values)[0], each)
        losses = {name: watched[name] for name in replica.losses}
        if clipped:
            watched["gradient_norm"] = local(norm)[0]
            report.scalars[_numbered("gradient_norm", report.scalars)] = local(norm)[0]
        if report.recording:
            self._report_learning_rate(report, optimizer)
        # Nothing may be counted before there is a batch, let alone a finite loss.
        check = values if self.guard is None else self.guard(watched, batch, before)
        with tf.control_dependencies(local(check)):
            token = tf.identity(step)

        def apply(replica_grads):
            with (
                tf.control_dependencies([token]),
                _upstream.gradients_already_reduced(optimizer),
            ):
                optimizer.apply(replica_grads, [variables[i] for i in replica.reached])

        self.strategy.run(apply, args=(grads,))
        report.updates.append(token)
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
                self._trace_once(element_spec)
            trainable = self.model.trainable_variables
            for name, optimizer in self.optimizers.items():
                if not optimizer.built:
                    optimizer.build(trainable)
                    self._built_for[name] = {id(variable) for variable in trainable}
        self._check_scope()
        self._check_unfrozen()
        if not self._known:
            split_seeds(self.model, self.strategy)
        self._known = {id(variable) for variable in self.model.variables}

    @property
    def optimizers(self) -> dict[str, keras.optimizers.Optimizer]:
        """All optimizers by name; a single one is named `optimizer`."""
        if isinstance(self.optimizer, Mapping):
            return dict(self.optimizer)
        return {"optimizer": self.optimizer}

    def signature(self) -> tuple:
        """What is frozen when the step is traced; if it changed, the step is traced anew."""
        trainable = tuple(v.path for v in self.model.trainable_variables)
        flags = tuple(layer.trainable for _, layer in _upstream.layers_by_path(self.model))
        return (trainable, flags, self.loss_weights.signature(), self.clip_norm, self.jit)

    def __call__(self, batch: Any, *, recording: bool = False) -> StepOutput:
        """Traces one step: cross-replica code, inside a `tf.function`.

        Args:
          batch: one element of the (distributed) iterator.
          recording: whether the model's summaries are wanted.
        """
        self._report = report = StepReport(recording)
        try:
            shown = dict(self.step(batch))
        finally:
            self._report = None
        self._check_no_new_variables()
        if not report.updates:
            raise LossError(f"{type(self).__name__}.step never called self.minimize(...).")
        self.loss_weights.check_all_used(list(report.losses))
        with tf.control_dependencies(report.updates):
            self.counter.assign_add(1)
        return report.output(shown)

    # How

    def _gradients(
        self, forward: Callable[[Any], Any], batch: Any, variables: list[Any], step: tf.Tensor
    ) -> tuple[ReplicaReport, tf.Tensor, list[Any], dict[str, tf.Tensor], tf.Tensor]:
        """Replica code: (report, numbers, gradients, summaries, gradient norm).

        Numbers and gradients are reduced over replicas, and gradients are clipped.
        """
        recording = self._current_report().recording
        replicas = self.strategy.num_replicas_in_sync
        reports: list[ReplicaReport] = []

        def compute(batch, step):
            with tf.GradientTape() as tape, _upstream.inputs_untouched(self.model):
                with forward_context(step, recording) as context:
                    returned = forward(batch)
                losses = collect(returned, context, variables)
                check_reaches_variables(losses, returned, variables)
                weighted = self.loss_weights.apply(losses, step)
                terms = list(weighted.values())
                total = sum(terms[1:], terms[0])
                # Gradients are summed over replicas below, so this makes it their mean.
                objective = total / replicas if replicas > 1 else total
            with context.backward():
                grads = tape.gradient(objective, [_tf_variable(v) for v in variables])
            self._warn_unreached([v for v, g in zip(variables, grads, strict=True) if g is None])
            report, values, summaries = ReplicaReport.pack(losses, weighted, total, context, grads)
            reports.append(report)
            return values, [grads[i] for i in report.reached], summaries

        if self.jit:
            compute = tf.function(compute, jit_compile=True, autograph=False)
        values, grads, summaries = compute(batch, step)
        report = reports[-1]
        if replicas > 1:
            context = tf.distribute.get_replica_context()
            values, *grads = context.all_reduce(tf.distribute.ReduceOp.SUM, [values, *grads])
            values = report.mean_over_replicas(values, replicas)
        norm = tf.constant(0.0)
        if self.clip_norm is not None:
            norm = tf.linalg.global_norm(grads)
            grads, _ = tf.clip_by_global_norm(grads, self.clip_norm, use_norm=norm)
        return report, values, grads, summaries, tf.cast(norm, tf.float32)

    def _report_learning_rate(
        self, report: StepReport, optimizer: keras.optimizers.Optimizer
    ) -> None:
        """The rate of this update; a schedule is read before the update moves it on."""
        for name, one in self.optimizers.items():
            if one is optimizer:
                several = isinstance(self.optimizer, Mapping)
                tag = f"learning_rate/{name}" if several else "learning_rate"
                report.scalars[tag] = tf.cast(tf.identity(one.learning_rate), tf.float32)

    def _random_states(self) -> dict[str, tf.Tensor]:
        """The seed generators' states before the forward pass moves them on."""
        if self.guard is None:
            return {}
        states = _upstream.seed_states(self.model)
        return {str(i): tf.identity(_tf_variable(state)) for i, (_, state) in enumerate(states)}

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

    def _current_report(self) -> StepReport:
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

    def _check_no_new_variables(self) -> None:
        """Raises ModelError if the step made variables: they are in no checkpoint or optimizer."""
        late = [v.path for v in self.model.variables if id(v) not in self._known]
        if self._known and late:
            raise ModelError(
                f"The training step created variables: {', '.join(late)}. All variables must "
                "exist before the first step: call these layers in every training forward, or "
                "build them in the model's build()."
            )

    def _trace_once(self, element_spec: Any) -> None:
        """Builds the model by tracing its training forward, without computing anything.

        Not inside `strategy.run`, where variables can't be created after a synchronisation.
        """

        def dry_run(batch):
            with _upstream.inputs_untouched(self.model):
                self.forward(batch)

        try:
            tf.function(dry_run, autograph=False).get_concrete_function(element_spec)
        except Exception as error:
            raise _upstream.innermost(error, TflossError) from None
        if not self.model.built:
            raise ModelError(f"Calling {self.model.name!r} did not build it.")

    def _check_unfrozen(self) -> None:
        """Raises ModelError for variables that an optimizer was not built for."""
        for name, known in self._built_for.items():
            new = [v.path for v in self.model.trainable_variables if id(v) not in known]
            if new:
                raise ModelError(
                    f"The {name} was built while these variables were frozen, and Keras can't "
                    f"add slots to it: {', '.join(new)}. To unfreeze layers later, call "
                    "optimizer.build(variables) with all of them before the first train(), or go "
                    "on with a new Trainer and optimizer."
                )

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


def _numbered(name: str, taken: Mapping[str, Any]) -> str:
    number = 1
    tag = name
    while tag in taken:
        tag, number = f"{name}_{number}", number + 1
    return tag
