"""The variables of a model and its optimizers: created before the first step, and never after.

Host code, in the strategy's scope.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.checkpoint.untracked import untracked, variable_of
from tfloss.errors import ModelError
from tfloss.optimizers.groups import Group, check_disjoint, warn_of_ungrouped
from tfloss.step.dry_run import dry_run
from tfloss.step.overwritten_variables import is_overwritten
from tfloss.step.random_states import begin_keras_random, process_variables, split_seeds


class Variables:
    """Creates variables that don't exist yet, and refuses those that can't be trained.

    Args:
      model: A model, built or not.
      groups: The groups whose optimizers get slots for their variables.
      strategy: The strategy in whose scope everything must be created.
    """

    def __init__(
        self, model: keras.Model, groups: Mapping[str, Group], strategy: tf.distribute.Strategy
    ):
        self._model, self._groups, self._strategy = model, groups, strategy
        self._known: set[int] = set()

    def build(
        self, element_spec: Any, forward: Callable[[Any], Any], *, own_step: bool = False
    ) -> None:
        """Builds model and optimizers unless they are built, and checks them.

        Args:
          element_spec: `tf.TypeSpec`s of one replica's batch.
          forward: The training forward, traced once if it might create variables.
          own_step: Whether the step may not use `forward`. It is then traced only if the model
            isn't built.

        Raises:
          ValueError: A glob of a group matches no variable, or has no effect.
          ModelError: Something was created outside of the scope, nothing can be trained, two
            groups have a variable in common, or Keras can't clip variables of several dtypes.
        """
        self._check_scope()
        if not self._known:
            begin_keras_random(self._strategy)
        complete = own_step or not _upstream.has_unbuilt_parts(self._model)
        if not self._known and not (self._model.built and complete):
            dry_run(self._model, forward, element_spec, self._strategy)
            _upstream.finalize_states(self._model)
        if not self._model.built and not self._model.variables:
            raise ModelError(
                f"Calling {self._model.name!r} did not build it: it has no variables after a "
                "training forward. Call its layers there, or build them in the model's build()."
            )
        with self._strategy.scope():
            variables = {name: one.trainable(self._model) for name, one in self._groups.items()}
            check_disjoint(variables)
            if not self._known and self._groups:
                warn_of_ungrouped(self._model, variables)
            for name, group in self._groups.items():
                _check_clips_one_dtype(name, group.optimizer, variables[name])
                if undecayed := group.undecayed(name, self._model):
                    _upstream.exclude_from_weight_decay(group.optimizer, undecayed)
                if not group.optimizer.built:
                    group.optimizer.build(variables[name])
                    continue
                known = {id(v) for v in _upstream.optimizer_built_for(group.optimizer)}
                if known and not known.issuperset(map(id, variables[name])):
                    # Unfrozen since: Keras itself would refuse them.
                    _upstream.extend_optimizer(group.optimizer, variables[name])
        self._check_scope()
        if not self._known:
            split_seeds(self._model, self._strategy)
        self._known = {id(variable) for variable in self._model.variables}

    def check_no_new(self) -> None:
        """Checks that tracing the step created no variables, which no checkpoint would hold.

        Raises:
          ModelError: There are new variables.
        """
        late = [v.path for v in self._model.variables if id(v) not in self._known]
        if self._known and late:
            raise ModelError(
                f"The training step created variables: {', '.join(late)}. All variables must "
                "exist before the first step: call these layers in every training forward, or "
                "build them in the model's build()."
            )

    def _check_scope(self) -> None:
        """Raises ModelError if a variable belongs to another strategy."""
        extended = self._strategy.extended
        for what, variables in (
            ("model", self._model.variables),
            *((f"optimizer {n!r}", g.optimizer.variables) for n, g in self._groups.items()),
        ):
            for variable in variables:
                value = variable.value if isinstance(variable, keras.Variable) else variable
                if not extended.variable_created_in_scope(value):
                    raise ModelError(
                        f"The {what} was created outside of the scope of "
                        f"{type(self._strategy).__name__} (variable {variable.path!r}). Create "
                        "model and optimizer inside `with strategy.scope():`, and give the same "
                        "strategy to the Trainer: Trainer(..., strategy=strategy)."
                    )


def _check_clips_one_dtype(group: str, optimizer: Any, variables: Sequence[Any]) -> None:
    dtypes = sorted({str(v.dtype) for v in variables if not is_overwritten(v)})
    if optimizer.global_clipnorm and len(dtypes) > 1:
        raise ModelError(
            f"Optimizer {group!r} has global_clipnorm={optimizer.global_clipnorm}, for which Keras "
            f"needs variables of one dtype; they are {', '.join(dtypes)}. Leave it out and give "
            f"the Trainer clip_norm={optimizer.global_clipnorm}, which takes any dtypes."
        )


def replica_statistics(model: keras.Model) -> list[tf.Variable]:
    """The variables that each replica updates for itself in a forward pass: statistics."""
    return [
        variable.value
        for variable in model.non_trainable_variables
        if tf.as_dtype(variable.dtype).is_floating and variable.aggregation in (None, "none")
    ]


def forward_state(model: keras.Model, strategy: tf.distribute.Strategy) -> list[tf.Variable]:
    """The variables that a forward pass changes: statistics, counters, random states, metrics.

    Raw `tf.Variable`s and `tf.random.Generator`s that the model's layers hold belong to them, and
    the global generators of TensorFlow and Keras.
    """
    others = (*_upstream.rnn_states(model), *process_variables(strategy))
    found = (*model.non_trainable_variables, *model.metrics_variables, *others)
    raw = [variable for variable, _ in _raw_variables(model)]
    return [*(one.value if isinstance(one, keras.Variable) else one for one in found), *raw]


def skipped_state(model: keras.Model) -> list[tf.Variable]:
    """The variables that a skipped update restores: those of `forward_state`, with exceptions.

    Random states go on, so that the next step draws other numbers. Variables that sum over
    replicas what is assigned to them can't be restored in traced code.
    """
    seeds = {id(state) for _, state in _upstream.seed_states(model)}
    own = [one for one in model.non_trainable_variables if id(one) not in seeds]
    own = [one for one in own if one.aggregation != "sum"]
    found = (*own, *model.metrics_variables, *_upstream.rnn_states(model))
    return [*(one.value for one in found), *_restorable(_raw_variables(model))]


def _restorable(raw: Iterable[tuple[tf.Variable, bool]]) -> list[tf.Variable]:
    """The raw variables that replica code can restore, and that are no random states."""
    local = tf.VariableSynchronization.ON_READ  # each replica assigns its own part
    return [
        variable
        for variable, is_random in raw
        if not is_random
        and (
            variable.synchronization == local or variable.aggregation != tf.VariableAggregation.SUM
        )
    ]


def _raw_variables(model: keras.Model) -> list[tuple[tf.Variable, bool]]:
    """The variables of a model that Keras doesn't know, and whether they are random states."""
    known = (*model.variables, *model.metrics_variables, *_upstream.rnn_states(model))
    ids = {id(one) for variable in known for one in (variable, variable.value)}
    found: dict[int, tuple[tf.Variable, bool]] = {}
    for _, holder in untracked(model):
        variable = variable_of(holder)
        if variable is not None and id(variable) not in ids:
            raw = variable.value if isinstance(variable, keras.Variable) else variable
            found[id(raw)] = raw, isinstance(holder, tf.random.Generator)
    return list(found.values())
