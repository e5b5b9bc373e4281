"""Groups of variables, each with its own optimizer: which loss trains what, and when.

    optimizer = {
        "generator": (keras.optimizers.Adam(1e-4), model.generator),
        "discriminator": tfloss.Group(keras.optimizers.Adam(4e-4), model.discriminator, every=2),
    }

A group may have rates by variable: `Group(optimizer, rate_multipliers={"backbone/*": 0.1})`.

A loss named `generator/...` updates the variables of that group only. A loss that is named after no
group updates all groups that it reaches. A single optimizer is one group, named `optimizer`, of all
trainable variables, which all losses update.
"""

import dataclasses
import difflib
import math
import re
import reprlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.errors import LossError, ModelError
from tfloss.forward.losses import REGULARIZATION
from tfloss.optimizers.variable_globs import matches, matching

SINGLE = "optimizer"
# Names in a checkpoint.
_RESERVED = ("model", "ema", "step", "loss_scale", "loss_weights", "skipped")

Variables = keras.Layer | Iterable[Any] | Callable[[Any], Any] | None


@dataclasses.dataclass(frozen=True)
class Group:
    """An optimizer, the variables it updates, and at which steps it does.

    It is due at the steps where `step % every == offset`, `step` being the number of completed
    steps, so that `every=2` and `every=2, offset=1` alternate. At other steps its losses are
    computed and logged, but not its gradient.

    Attributes:
      optimizer: A Keras optimizer that no other group has.
      variables: A layer or model (its trainable variables, whenever they are created), several
        layers or variables, or a function of the trainer's model that returns these. None: all
        trainable variables of the model.
      every: Period of the updates, in steps.
      offset: Step of its first update, less than `every`.
      rate_multipliers: `{glob: factor}`, such as `{"*/bias": 2.0, "backbone/*": 0.1}`. The update
        of a variable, weight decay included, is multiplied by the factors of all globs that match
        its path (`tfloss.optimizers.variable_globs`).
      no_weight_decay: Globs of variables that have no weight decay, such as `["*/bias"]`.
    """

    optimizer: keras.optimizers.Optimizer
    variables: Variables = None
    every: int = 1
    offset: int = 0
    rate_multipliers: Mapping[str, float] = dataclasses.field(default_factory=dict[str, float])
    no_weight_decay: Iterable[str] = ()

    def __post_init__(self) -> None:
        """Raises ValueError for an optimizer, a period or a multiplier that can't be used."""
        if not isinstance(self.optimizer, keras.optimizers.Optimizer):
            raise ValueError(
                f"The optimizer must be a Keras optimizer, got {reprlib.repr(self.optimizer)}. "
                + (
                    "Several optimizers need names: {'body': (optimizer, layers), 'head': ...}."
                    if isinstance(self.optimizer, list | tuple)
                    else "Write keras.optimizers.Adam(1e-3), for instance."
                )
            )
        _check_supported(self.optimizer)
        if self.every < 1 or not 0 <= self.offset < self.every:
            raise ValueError(
                f"Group(every={self.every}, offset={self.offset}): every must be at least 1 and "
                "offset from 0 to every - 1."
            )
        _check_multipliers(self.rate_multipliers)
        if isinstance(self.no_weight_decay, str):
            raise ValueError(
                f"no_weight_decay={self.no_weight_decay!r} must be a list of globs: "
                f"[{self.no_weight_decay!r}]."
            )
        # Copies: what a script changes later would be ignored by a traced step.
        object.__setattr__(self, "rate_multipliers", dict(self.rate_multipliers))
        object.__setattr__(self, "no_weight_decay", tuple(self.no_weight_decay))

    def weights(self, model: keras.Model) -> list[Any]:
        """All weights of the group's layers, and its variables, trainable now or not. Host code.

        Args:
          model: The trainer's model, built.

        Returns:
          Keras variables.
        """
        found = self._given(model)
        weights = _variables(model if found is None else found, "weights")
        return [one for one in weights if isinstance(one, keras.Variable)]

    def multiplier(self, variable: Any, model: keras.Model) -> float:
        """The factor of a variable's updates: the product of all multipliers that match its path.

        Args:
          variable: A Keras variable.
          model: The trainer's model.
        """
        factors = self.rate_multipliers.items()
        return math.prod(factor for glob, factor in factors if matches(glob, variable, model))

    def undecayed(self, name: str, model: keras.Model) -> list[Any]:
        """Checks the globs of the group. Host code.

        Args:
          name: Name of the group, for messages.
          model: The trainer's model, built.

        Returns:
          The variables that have no weight decay.

        Raises:
          ValueError: A glob matches no variable of the group, or only statistics and counters, or
            there is no weight decay.
        """
        group = "" if name == SINGLE else f"Optimizer group {name!r}: "
        what = "variable of the model" if name == SINGLE else "variable of this group"
        weights = self.weights(model)
        untrained = _upstream.made_untrainable(model)

        def matched(glob: str, owner: str) -> list[Any]:
            found = matching(glob, weights, model, owner, what)
            if all(id(v) in untrained and not v.trainable for v in found):
                raise ValueError(
                    f"{owner} has no effect: {found[0].path!r} and all other variables that it "
                    "matches were made with trainable=False, so no optimizer updates them."
                )
            return found

        for glob in self.rate_multipliers:
            matched(glob, f"{group}rate_multipliers[{glob!r}]")
        if self.no_weight_decay and not _upstream.has_weight_decay(self.optimizer):
            raise ValueError(
                f"{group}no_weight_decay has no effect, since "
                f"{type(self.optimizer).__name__} has no weight_decay. Give the optimizer "
                "weight_decay=1e-4, for instance, or leave no_weight_decay out."
            )
        found = {}
        for glob in self.no_weight_decay:
            found |= {id(v): v for v in matched(glob, f"{group}no_weight_decay={glob!r}")}
        return list(found.values())

    def trainable(self, model: keras.Model) -> list[Any]:
        """The variables of the group that are trainable now. Host code.

        Args:
          model: The trainer's model, built.

        Returns:
          Keras variables.
        """
        found = self._given(model)
        if found is None:
            return list(model.trainable_variables)
        ids = {id(variable) for variable in model.trainable_variables}
        return [v for v in _variables(found) if id(v) in ids]

    def _given(self, model: keras.Model) -> Any:
        """The layers or variables that were given, or that the given function returns."""
        found = self.variables
        return found if isinstance(found, keras.Layer) or not callable(found) else found(model)


def make_groups(optimizer: Any) -> dict[str, Group]:
    """Makes groups by name, of what a `Trainer` was given as `optimizer`.

    Args:
      optimizer: A Keras optimizer, a `Group`, or a mapping from names to `Group` or
        `(optimizer, variables)`. None: nothing will be trained.

    Returns:
      `{name: group}`; a single optimizer is the group "optimizer".

    Raises:
      ValueError: Something else was given, a name can't be used, or two groups have the same
        optimizer.
    """
    if optimizer is None:
        return {}
    if not isinstance(optimizer, Mapping):
        if isinstance(optimizer, Group):
            return {SINGLE: optimizer}
        return {SINGLE: Group(optimizer)}
    groups = {}
    for name, value in optimizer.items():
        if not isinstance(name, str) or not name or "/" in name or name in _RESERVED:
            raise ValueError(
                f"An optimizer group can't be named {name!r}: use a string without '/', other "
                f"than {', '.join(_RESERVED)}."
            )
        if isinstance(value, tuple) and len(value) == 2:
            value = Group(*value)
        if not isinstance(value, Group):
            raise ValueError(
                f"Optimizer group {name!r} must be (optimizer, variables) or tfloss.Group(...), "
                f"got {type(value).__name__}. The variables can be a layer: "
                f"{{{name!r}: (keras.optimizers.Adam(1e-4), model.{name})}}."
            )
        groups[name] = value
    if not groups:
        raise ValueError("optimizer is an empty mapping: nothing would be trained.")
    if len({id(group.optimizer) for group in groups.values()}) < len(groups):
        raise ValueError("Two optimizer groups have the same optimizer object: make two.")
    return groups


def check_disjoint(variables: Mapping[str, list[Any]], frozen: Iterable[str] = ()) -> None:
    """Checks that each variable belongs to one group, and that each group has one.

    Args:
      variables: `{group: its trainable variables}`.
      frozen: Names of groups that may have none, since they are frozen for a part of the run.

    Raises:
      ModelError: Two groups have a variable in common, or one has none.
    """
    owner: dict[int, str] = {}
    frozen = set(frozen)
    for name, mine in variables.items():
        if not mine and name not in frozen:
            what = (
                "the model has no trainable variables"
                if name == SINGLE
                else (f"optimizer group {name!r} has no trainable variables of the model")
            )
            raise ModelError(
                f"There is nothing to train: {what}. Are its layers frozen, or not built yet? "
                "Every layer must be an attribute that __init__ sets, and be called in "
                "call(batch, training=True) or built in build()."
            )
        for variable in mine:
            other = owner.setdefault(id(variable), name)
            if other != name:
                raise ModelError(
                    f"Variable {variable.path!r} is in two optimizer groups, {other!r} and "
                    f"{name!r}. It must be updated by one."
                )


def shared_losses(losses: Iterable[str], groups: Iterable[str]) -> str:
    """Says that several losses train all groups, if none of them is named after a group.

    It may be meant, as for a trunk and a head with several losses, or a mistake, as in a GAN.

    Args:
      losses: Names of the losses of one forward pass.
      groups: Names of the groups.

    Returns:
      The message; empty if there is nothing to say.
    """
    groups, losses = list(groups), [name for name in losses if name != REGULARIZATION]
    if len(groups) < 2 or len(losses) < 2 or any(x.split("/")[0] in groups for x in losses):
        return ""
    return (
        f"the losses {', '.join(losses)} train all optimizer groups that they reach "
        f"({', '.join(groups)}), since none is named after a group. A loss with a name "
        f"'{groups[0]}/...' trains that group only."
    )


def warn_of_ungrouped(model: keras.Model, variables: Mapping[str, list[Any]]) -> None:
    """Warns of trainable variables that no group updates. Host code.

    Args:
      model: The model, built.
      variables: `{group: its trainable variables}`.
    """
    known = {id(variable) for mine in variables.values() for variable in mine}
    rest = [variable.path for variable in model.trainable_variables if id(variable) not in known]
    if rest:
        shown = ", ".join(rest[:5]) + (f" and {len(rest) - 5} more" if len(rest) > 5 else "")
        warnings.warn(
            f"No optimizer group trains these variables: {shown}. Add their layers to a group; or "
            "set trainable=False for layers that must stay as they are.",
            stacklevel=2,
        )


def split_losses(names: Iterable[str], groups: Iterable[str]) -> dict[str, list[str]]:
    """Assigns losses to groups: to the group that is the first part of their name, or else to all.

    If there is one group, it gets all losses. The weight regularizers count for every group, as
    each updates its own variables only.

    Args:
      names: Names of losses.
      groups: Names of groups.

    Returns:
      `{group: its losses}`.

    Raises:
      LossError: The name of a loss resembles that of a group, so that it may be a mistake, or a
        group has no loss; the message names it.
    """
    names, groups = list(names), list(groups)
    if len(groups) == 1:
        return {groups[0]: names}
    found: dict[str, list[str]] = {group: [] for group in groups}
    for name in names:
        group = name.split("/")[0]
        if name != REGULARIZATION and group in found:
            found[group].append(name)
            continue
        if name != REGULARIZATION:
            _check_means_no_group(name, groups)
        for each in found.values():
            each.append(name)
    for group, mine in found.items():
        if all(name == REGULARIZATION for name in mine):
            raise LossError(
                f"No loss is reported for optimizer group {group!r}: name one '{group}/...', or "
                "give a loss a name that begins with no group, so that it trains all groups. The "
                f"losses are: {', '.join(names)}."
            )
    return found


def _check_means_no_group(name: str, groups: list[str]) -> None:
    """Refuses a name that is nearly that of a group: `genrator/l1`, `generator_loss`."""
    first, slash, rest = name.partition("/")
    near = [group for group in groups if group in re.split(r"[^0-9A-Za-z]+", first)]
    if slash and not near:
        near = difflib.get_close_matches(first, groups, 1, 0.75)
    if near:
        own = f"{near[0]}/{rest if slash else 'loss'}"
        raise LossError(
            f"Loss {name!r} is named after no optimizer group, but its name resembles that of "
            f"{near[0]!r}. To train this group only, name it {own!r}. To train all groups that it "
            "reaches, give it a name that resembles none. (An added loss has the path of its "
            "layer: rename the layer.)"
        )


def joint(losses: Mapping[str, list[str]], groups: Iterable[str]) -> list[list[str]]:
    """Puts groups together that are trained by the same losses: one backward pass serves them all.

    Args:
      losses: What `split_losses` returned.
      groups: Names of groups.

    Returns:
      Names of the groups, in their order.
    """
    found: dict[tuple[str, ...], list[str]] = {}
    for group in groups:
        found.setdefault(tuple(losses[group]), []).append(group)
    return list(found.values())


def due_sets(groups: Mapping[str, Group], frozen: Iterable[str] = ()) -> list[tuple[str, ...]]:
    """The groups that are due at each step, for one period of steps.

    Args:
      groups: `{name: group}`.
      frozen: Names of groups that are never due.

    Returns:
      Names of the groups that are due at step 0, 1, and so on, until they repeat.
    """
    frozen = set(frozen)
    trained = {name: group for name, group in groups.items() if name not in frozen}
    period = math.lcm(*(group.every for group in trained.values()))
    return [
        tuple(name for name, g in trained.items() if step % g.every == g.offset)
        for step in range(period)
    ]


def _variables(found: Any, of_layer: str = "trainable_variables") -> list[Any]:
    if isinstance(found, keras.Layer):
        return list(getattr(found, of_layer))
    if isinstance(found, keras.Variable | tf.Variable):
        return [found]
    if isinstance(found, Mapping):
        found = found.values()
    if isinstance(found, str | tf.Tensor) or not isinstance(found, Iterable):
        raise ValueError(
            f"The variables of an optimizer group can't be {found!r}, a {type(found).__name__}. "
            "Give a layer (model.trunk), variables, a list or dict of these, or a function of the "
            "model that returns them: lambda model: model.layers[:-1]."
        )
    unique = {id(v): v for each in found for v in _variables(each, of_layer)}
    return list(unique.values())


def _check_multipliers(multipliers: Any) -> None:
    if not isinstance(multipliers, Mapping):
        raise ValueError(
            f"rate_multipliers={multipliers!r} must be a mapping from globs to numbers: "
            "{'*/bias': 2.0}."
        )
    for glob, factor in multipliers.items():
        number = isinstance(factor, int | float) and not isinstance(factor, bool)
        if not isinstance(glob, str) or not number or not 0 <= factor < math.inf:
            raise ValueError(
                f"rate_multipliers[{glob!r}] must be a finite number of at least 0, got {factor!r}."
            )


def _check_supported(optimizer: Any) -> None:
    """Refuses options that Keras applies wrongly, or not at all, under several replicas."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise ValueError(
            "LossScaleOptimizer looks at one replica's gradients only. Give the optimizer in it, "
            'and precision="mixed_float16", which scales the loss.'
        )
    if isinstance(optimizer, keras.optimizers.MultiOptimizer):
        raise ValueError(
            "MultiOptimizer hides its optimizers, so that their options and learning rates can't "
            "be seen. Give a group for each: {'encoder': (keras.optimizers.Adam(1e-4), "
            "model.encoder), ...}, or one optimizer."
        )
    if optimizer.gradient_accumulation_steps:
        raise ValueError(
            "The optimizer's gradient_accumulation_steps runs schedules and averages at the "
            "rate of micro-batches. Leave it out and give accumulate="
            f"{optimizer.gradient_accumulation_steps}."
        )
    if optimizer.loss_scale_factor:
        raise ValueError(
            "The optimizer's loss_scale_factor is not applied by tfloss. Leave it out and give "
            'precision="mixed_float16", which scales the loss.'
        )
    if optimizer.use_ema:
        raise ValueError(
            "The optimizer's use_ema keeps averages that only Keras's fit puts into the model, at "
            f"its end. Leave it out and give ema={optimizer.ema_momentum}, then use "
            "evaluate(ema=True) or `with trainer.averaged():`. Nothing replaces "
            "ema_overwrite_frequency: the weights are never overwritten with averages in training."
        )
