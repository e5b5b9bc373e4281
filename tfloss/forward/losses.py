"""The losses of one replica's forward pass: collected, named, checked and weighted.

A model reports losses by returning a scalar or a (nested) mapping of scalars, by `add_loss` in any
layer, or both:

    returned {"rpn": {"box": b}}         rpn/box
    returned a bare scalar               loss
    layer.add_loss(v)                    the layer's path; again: path_1, path_2
    tfloss.add_loss(layer, kl=v)         path/kl
    weight regularizers                  regularization (their sum)

A tensor that is both returned and added counts once, under the returned name. What a forward pass
reads from `layer.losses` and puts into a loss counts once too, in that loss. All losses are
converted to float32 scalars, whatever the precision of the model. Replica code, traced.
"""

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import keras
import numpy as np
import tensorflow as tf

from tfloss.common.reachable import find_objects
from tfloss.common.unique_names import unique_name
from tfloss.errors import LossError
from tfloss.forward.context import ForwardContext, current_context
from tfloss.forward.layer_losses import AddedLoss
from tfloss.forward.reachability import depends_on, gradient_reaches

Weight = float | Callable[[tf.Tensor], Any]
REGULARIZATION = "regularization"
TOTAL = "total"
_RESERVED = {
    TOTAL: "the weighted sum of all losses, the objective",
    REGULARIZATION: "the sum of all weight regularizers",
    "gradient_norm": "the norm of the gradient",
}


def add_loss(layer: keras.Layer, **losses: Any) -> None:
    """Adds named losses of a layer: `tfloss.add_loss(self, kl=kl)` adds `<path>/kl`.

    Call it in `Layer.call`. It runs traced, in replica code. Plain Keras gets an ordinary
    `layer.add_loss(value)`.

    Args:
      layer: Layer that adds the losses, usually `self`.
      **losses: Losses by name, floating-point scalar tensors.
    """
    context = current_context()
    for name, value in losses.items():
        if context is not None:
            context.pending_name = name
        try:
            layer.add_loss(value)
        finally:
            if context is not None:
                context.pending_name = None


def collect(
    returned: Any, context: ForwardContext, variables: Iterable[Any] = ()
) -> dict[str, tf.Tensor]:
    """Collects the named losses of one forward pass. Runs traced, in replica code.

    Args:
      returned: Value that the training forward returned.
      context: Context in which it ran.
      variables: Trained variables, for their weight regularizers.

    Returns:
      `{name: float32 scalar}` with at least one loss, in this order: returned, added,
      regularization.

    Raises:
      LossError: There is no loss, a loss is not a floating-point scalar or has a reserved name,
        or the forward pass returned something else.
    """
    named = _flatten(returned)
    values = [*named.values(), *(one.value for one in context.losses)]
    parts = context.layer_losses.parts_of(values)
    counted = {id(part) for found in parts for part in found}
    losses = {name: _checked(name, value) for name, value in named.items()}
    names = list(losses)
    for added in context.losses:
        once = context.only_returned or id(added) in counted
        once = once or any(added.value is value for value in named.values())
        name = unique_name(_added_name(added), losses)
        names.append("" if once else name)
        if not once:
            losses[name] = _checked(name, added.value)
    for name, found in zip(names, parts, strict=True):
        for part in found if name else ():
            context.holders.setdefault(id(part), []).append(name)
    terms = [
        tf.cast(variable.regularizer(variable), tf.float32)
        for variable in (() if context.only_returned else variables)
        if getattr(variable, "regularizer", None) is not None and id(variable) not in counted
    ]
    if terms:
        losses[REGULARIZATION] = sum(terms[1:], terms[0])
    if not losses:
        raise LossError(
            "The training forward reported no loss. In `call(..., training=True)` return a "
            "scalar or a mapping {name: scalar}, or call self.add_loss(...)."
        )
    return losses


def returned_names(returned: Any) -> list[str]:
    """Returns the names of the losses that a forward pass returned.

    Args:
      returned: Scalar or (nested) mapping of scalars.
    """
    return list(_flatten(returned))


def _flatten(returned: Any, prefix: str = "") -> dict[str, Any]:
    """Flattens a scalar or a nested mapping to `{joined/name: value}`."""
    if returned is None and not prefix:
        return {}
    if isinstance(returned, Mapping):
        flat: dict[str, Any] = {}
        for key, value in cast(Mapping[Any, Any], returned).items():
            if not isinstance(key, str) or not key:
                raise LossError(
                    f"The name of a loss must be a non-empty string, got {key!r} in the mapping "
                    "returned by the training forward."
                )
            for name, one in _flatten(value, f"{prefix}/{key}" if prefix else key).items():
                if name in flat:
                    raise LossError(f"Two returned losses have the same name {name!r}.")
                flat[name] = one
        return flat
    if isinstance(returned, np.floating):  # a constant, as a Python float is
        return {prefix or "loss": float(returned)}
    if isinstance(returned, float | keras.KerasTensor) or tf.is_tensor(returned):
        return {prefix or "loss": returned}
    where = f"under {prefix!r} " if prefix else ""
    advice = ""
    if isinstance(returned, list | tuple):
        advice = "Several losses need names: {'box': a, 'class': b}. "
    elif returned is None:
        advice = "Leave it out. "
    raise LossError(
        f"The training forward returned {_describe(returned)} {where}where a scalar loss or a "
        f"mapping {{name: scalar}} is expected. {advice}Predictions belong to the inference "
        "forward: return them only when `training` is False."
    )


def _describe(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(cast(Sequence[Any], value))}"
    return f"{'an' if type(value).__name__[0] in 'aeiou' else 'a'} {type(value).__name__}"


def _checked(name: str, value: Any) -> tf.Tensor:
    """Converts a loss to a float32 scalar. Raises LossError with its name if it is not one."""
    if name.split("/")[0] == "gradient_norm" or name in _RESERVED:
        reserved = _RESERVED[name.split("/")[0]]
        raise LossError(
            f"A loss can't be named {name!r}: tfloss itself uses this name for {reserved}. Return "
            "it under another name. If a layer adds it, the layer has this name: rename the "
            "layer, or use tfloss.add_loss(layer, another_name=value)."
        )
    tensor = tf.convert_to_tensor(value)
    rank: Any = tensor.shape.rank
    if rank not in (0, None):
        raise LossError(
            f"Loss {name!r} is not a scalar: shape {tensor.shape}. Keras's fit minimises the sum "
            "of such values. Report tf.reduce_mean(x), the mean over examples, or "
            "tfloss.global_sum(x), their sum over the global batch. If these are predictions, "
            "return them only when `training` is False; for a model without losses, use "
            "tfloss.adapters.supervised(model, loss)."
        )
    if not tensor.dtype.is_floating:
        raise LossError(
            f"Loss {name!r} has dtype {tensor.dtype.name}, which has no gradient. Cast the tensors "
            "it is computed from to a floating-point type first."
        )
    if rank is None:  # only then, since the op takes as long as a small loss
        tensor = tf.ensure_shape(tensor, [])
    return tf.cast(tensor, tf.float32)


def _added_name(added: AddedLoss) -> str:
    path = added.layer.path or added.layer.name
    return f"{path}/{added.name}" if added.name else path


class LossWeights:
    """The weights of named losses: `{name or glob: float, variable or callable of the step}`.

    An exact name takes precedence over a glob. A scalar variable is read at every step, so a hook
    may set it. A callable, such as a Keras `LearningRateSchedule`,
    gets the number of completed updates as an int64 tensor, at every step.
    """

    def __init__(self, patterns: Mapping[str, Weight] | None):
        """Creates the weights.

        Args:
          patterns: Weights by name or glob.

        Raises:
          LossError: A weight is not a number, a variable or a callable.
        """
        if patterns is not None and not isinstance(cast(Any, patterns), Mapping):
            raise LossError(
                "loss_weights must be a mapping {name or glob of a loss: weight}, got "
                f"{type(patterns).__name__}."
            )
        self._patterns = dict(patterns or {})
        for pattern, weight in self._patterns.items():
            number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not number and not callable(weight) and not _is_variable(weight):
                raise LossError(
                    f"loss_weights[{pattern!r}] must be a number, a variable or a callable of the "
                    f"step, got {weight!r}."
                )

    def signature(self) -> tuple[Any, ...]:
        """Returns a value that differs if the weights do, so that a step must be traced again."""
        return tuple(
            (k, id(v) if callable(v) or _is_variable(v) else v) for k, v in self._patterns.items()
        )

    def variables(self) -> dict[str, Any]:
        """Returns the scalar variables that weights are, or that callables read, by name.

        They are found in the closures, globals and attributes of a callable.
        """
        found: dict[str, Any] = {}
        for pattern, weight in self._patterns.items():
            if callable(weight) or _is_variable(weight):
                for path, one in find_objects(weight, (keras.Variable, tf.Variable)):
                    if not tuple(one.shape):
                        found[f"{pattern}/{path}" if path else pattern] = one
        return found

    def functions(self) -> dict[str, Callable[[tf.Tensor], Any]]:
        """Returns the weights that are functions of the step, by pattern."""
        return {name: weight for name, weight in self._patterns.items() if callable(weight)}

    def described(self) -> dict[str, Any]:
        """Returns the weights as JSON values: what is no number, by the name of its class."""
        return {name: described_weight(weight) for name, weight in self._patterns.items()}

    def of(self, name: str) -> Weight:
        """Returns the weight of a loss, or 1.0 if no pattern matches.

        Args:
          name: Name of the loss.

        Raises:
          LossError: Several globs match.
        """
        if name in self._patterns:
            return self._patterns[name]
        found = [p for p in self._patterns if fnmatch.fnmatchcase(name, p)]
        if len(found) > 1:
            raise LossError(
                f"Loss {name!r} matches several patterns of loss_weights: "
                f"{', '.join(map(repr, found))}. Add an entry with its exact name."
            )
        return self._patterns[found[0]] if found else 1.0

    def check_all_used(self, curves: Mapping[str, str]) -> None:
        """Checks that every pattern matches a loss.

        Args:
          curves: `{name of a loss in its forward pass: name of its curve}`. They differ if two
            `minimize` calls of a step add a loss of the same name.

        Raises:
          LossError: A pattern matches none.
        """
        names = list(curves)
        for pattern in self._patterns:
            if pattern not in names and not fnmatch.filter(names, pattern):
                for name, curve in curves.items():
                    if pattern == curve:
                        raise LossError(
                            f"loss_weights[{pattern!r}] names the curve of loss {name!r} in a "
                            "later `minimize` call of the step. A loss has one weight in all "
                            f"calls: write loss_weights[{name!r}]. To weight the calls "
                            "differently, return the losses under different names."
                        )
                near = difflib.get_close_matches(pattern, names, 1)
                raise LossError(
                    f"loss_weights[{pattern!r}] matches no loss. The losses are: "
                    f"{', '.join(names)}." + (f" Did you mean {near[0]!r}?" if near else "")
                )

    def apply(self, losses: Mapping[str, tf.Tensor], step: tf.Tensor) -> dict[str, tf.Tensor]:
        """Multiplies losses by their weights. Runs traced, in replica code.

        Args:
          losses: Losses by name, float32 scalars.
          step: Number of completed updates, int64 scalar tensor.

        Returns:
          `{name: weight * loss}`. A loss with a weight of exactly 1.0 is the same tensor.

        Raises:
          LossError: A function's value depends neither on the step nor on a variable.
        """
        weighted: dict[str, tf.Tensor] = {}
        for name, value in losses.items():
            weight = self.of(name)
            if callable(weight):
                found = weight(step)
                if not _changes(found, step):
                    raise LossError(
                        f"The function in loss_weights for loss {name!r} depends neither on its "
                        "argument, the step, nor on a variable. It is called once, when the step "
                        "is traced, so the weight would stay the same for the whole run. Give a "
                        "number, compute the weight from the step, or read a "
                        "tf.Variable(trainable=False) that a hook assigns."
                    )
                weighted[name] = tf.cast(found, tf.float32) * value
            elif _is_variable(weight):
                weighted[name] = tf.cast(tf.convert_to_tensor(weight), tf.float32) * value
            else:
                weighted[name] = value if weight == 1.0 else float(weight) * value
        return weighted


def described_weight(weight: Weight) -> float | str:
    """Returns a weight as a JSON value: what is no number, by the name of its class.

    Args:
      weight: The weight of a loss.
    """
    if isinstance(weight, int | float):
        return weight
    return getattr(weight, "__qualname__", type(weight).__qualname__)


def _changes(value: Any, step: tf.Tensor) -> bool:
    """Returns whether a traced value depends on the step or on a variable. True in eager mode."""
    if tf.executing_eagerly():
        return True
    if not tf.is_tensor(value):
        return isinstance(value, tf.Variable | keras.Variable)
    return depends_on(value, step)


def _is_variable(weight: Any) -> bool:
    return isinstance(weight, keras.Variable | tf.Variable)


def check_regularizers_are_trained(
    context: ForwardContext, losses: Mapping[str, Sequence[str]], variables: Mapping[str, Any]
) -> None:
    """Checks that a regularizer which is part of a loss is part of one that trains its variable.

    Args:
      context: Context of the forward pass, after `collect`.
      losses: `{group: names of the losses that train it}`.
      variables: `{group: its trained variables}`.

    Raises:
      LossError: The only losses with a regularizer train other groups.
    """
    for group, mine in variables.items():
        for variable in mine:
            holders = context.holders.get(id(variable), [])
            if holders and not set(holders) & set(losses[group]):
                raise LossError(
                    f"Loss {holders[0]!r} contains the regularizer of {variable.path!r}, but does "
                    f"not train this variable: it belongs to optimizer group {group!r}. Sum the "
                    "`losses` of the layers of one group only, or leave regularizers to tfloss, "
                    "which counts each of them."
                )


def check_reaches_groups(
    losses: Mapping[str, tf.Tensor],
    assigned: Mapping[str, Sequence[str]],
    returned: Any,
    variables: Mapping[str, Sequence[Any]],
    frozen: Sequence[Any] = (),
) -> None:
    """Checks that each loss reaches a variable that it trains, and that a loss reaches each group.

    It walks the traced graph from the loss back through floating-point tensors that a gradient
    can pass. Exact gradients of each loss would cost one backward trace for each. In eager mode
    nothing is checked. A loss returned as a Python float is meant to be a constant. A group
    without variables is frozen, and is not checked. Runs traced, in replica code.

    Args:
      losses: Losses by name.
      assigned: `{group: names of the losses that train it}`.
      returned: Value that the training forward returned.
      variables: `{group: its trained variables}`.
      frozen: Variables that are frozen for a part of the run. A loss may reach only these.

    Raises:
      LossError: The gradient of a loss reaches no variable that it trains, or no loss reaches a
        group.
    """
    if tf.executing_eagerly():
        return
    trained = {group: names for group, names in assigned.items() if variables[group]}
    reaches = {group: gradient_reaches(variables[group]) for group in trained}
    constants = {k for k, v in _flatten(returned).items() if isinstance(v, float)}
    reached: dict[str, set[str]] = {group: set() for group in trained}
    for name, value in losses.items():
        groups = [group for group, names in trained.items() if name in names]
        if name == REGULARIZATION or not groups:
            continue
        found = [g for g in groups if (name in constants and len(groups) == 1) or reaches[g](value)]
        for group in found:
            reached[group].add(name)
        if not (found or name in constants or gradient_reaches(frozen)(value)):
            raise LossError(
                f"The gradient of loss {name!r} reaches no trainable variable. Is its input "
                "behind tf.stop_gradient, an integer cast or argmax, or are all layers that "
                "it depends on frozen (trainable=False)? If you only want to log it, use "
                "tfloss.summary.scalar."
            )
    for group, names in reached.items():
        if not names and set(trained[group]) - {REGULARIZATION}:
            raise LossError(
                f"No loss reaches optimizer group {group!r}: the gradients of "
                f"{', '.join(sorted(set(trained[group]) - {REGULARIZATION}))} pass none of its "
                f"variables, such as {variables[group][0].path!r}. Does the forward pass use its "
                "layers, or is a tf.stop_gradient between them and the losses? If another "
                "`minimize` call of the step trains this group, give each call group=..."
            )
