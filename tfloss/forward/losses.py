"""One replica's loss report: what a training forward reports, collected, named, checked.

A model reports losses by returning a scalar or a (nested) mapping of scalars, by `add_loss`
in any layer, or both:

    returned {"rpn": {"box": b}}         rpn/box
    returned a bare scalar               loss
    layer.add_loss(v)                    the layer's path; again: path_1, path_2
    tfloss.add_loss(layer, kl=v)         path/kl
    weight regularizers                  regularization (their sum)

A tensor that is both returned and added counts once, under the returned name. All values
are float32 scalars here, whatever the model's precision. Replica code, trace time.
"""

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.common.unique_names import unique_name
from tfloss.errors import LossError
from tfloss.forward.context import AddedLoss, ForwardContext, current_context

Weight = float | Callable[[tf.Tensor], Any]
REGULARIZATION = "regularization"


def add_loss(layer: keras.Layer, **losses: Any) -> None:
    """Adds named losses of a layer: `tfloss.add_loss(self, kl=kl)` is named `<path>/kl`.

    Plain Keras sees an ordinary `layer.add_loss(value)`. Runs at trace time, in `call`.

    Args:
      layer: the layer that reports (usually `self`).
      **losses: name = scalar float tensor.
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
    """The named losses of one forward pass, in order: returned, added, regularization.

    Args:
      returned: what the training forward returned.
      context: the context it ran in.
      variables: the variables being trained, for their weight regularizers.

    Returns:
      `{name: float32 scalar}`, at least one.

    Raises:
      LossError: no loss, a loss that is not a floating-point scalar, or something else
        returned.
    """
    named = _flatten(returned)
    losses = {name: _checked(name, value) for name, value in named.items()}
    for added in context.losses:
        if not any(added.value is value for value in named.values()):
            name = unique_name(_added_name(added), losses)
            losses[name] = _checked(name, added.value)
    terms = [
        tf.cast(variable.regularizer(variable), tf.float32)
        for variable in variables
        if getattr(variable, "regularizer", None) is not None
    ]
    if terms:
        losses[unique_name(REGULARIZATION, losses)] = sum(terms[1:], terms[0])
    if not losses:
        raise LossError(
            "The training forward reported no loss. In `call(..., training=True)` return a "
            "scalar or a mapping {name: scalar}, or call self.add_loss(...)."
        )
    return losses


def returned_names(returned: Any) -> list[str]:
    """The names of the losses that a forward pass returned."""
    return list(_flatten(returned))


def _flatten(returned: Any, prefix: str = "") -> dict[str, Any]:
    """`{joined/name: value}` of a returned scalar or nested mapping."""
    if returned is None and not prefix:
        return {}
    if isinstance(returned, Mapping):
        flat = {}
        for key, value in returned.items():
            if not isinstance(key, str) or not key:
                raise LossError(
                    f"A loss's name must be a non-empty string, got {key!r} in the mapping "
                    "returned by the training forward."
                )
            for name, one in _flatten(value, f"{prefix}/{key}" if prefix else key).items():
                if name in flat:
                    raise LossError(f"Two returned losses have the same name {name!r}.")
                flat[name] = one
        return flat
    if isinstance(returned, float | keras.KerasTensor) or tf.is_tensor(returned):
        return {prefix or "loss": returned}
    what = f"under {prefix!r} " if prefix else ""
    raise LossError(
        f"The training forward returned {_describe(returned)} {what}where a scalar loss or a "
        "mapping {name: scalar} is expected. Predictions belong to the inference forward: "
        "return them only when `training` is False."
    )


def _describe(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return f"{'an' if type(value).__name__[0] in 'aeiou' else 'a'} {type(value).__name__}"


def _checked(name: str, value: Any) -> tf.Tensor:
    """The loss as a float32 scalar; raises LossError with its name if it isn't one."""
    tensor = tf.convert_to_tensor(value)
    if tensor.shape.rank not in (0, None):
        raise LossError(
            f"Loss {name!r} is not a scalar: shape {tensor.shape}. Reduce it (tf.reduce_mean "
            "over the examples, for instance). If these are predictions, return them only "
            "when `training` is False."
        )
    if not tensor.dtype.is_floating:
        raise LossError(
            f"Loss {name!r} has dtype {tensor.dtype.name}, which has no gradient. Cast what it "
            "is computed from to a floating-point type first."
        )
    if tensor.shape.rank is None:  # the op costs as much as a small loss
        tensor = tf.ensure_shape(tensor, [])
    return tf.cast(tensor, tf.float32)


def _added_name(added: AddedLoss) -> str:
    path = added.layer.path or added.layer.name
    return f"{path}/{added.name}" if added.name else path


class LossWeights:
    """The weights of named losses: `{name or glob: float or callable of the step}`.

    An exact name goes before a glob. A callable (a Keras `LearningRateSchedule`, for
    instance) gets the number of completed updates as an int64 tensor, on every step.

    Raises:
      LossError: a weight that is neither number nor callable.
    """

    def __init__(self, patterns: Mapping[str, Weight] | None):
        self._patterns = dict(patterns or {})
        for pattern, weight in self._patterns.items():
            number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not number and not callable(weight):
                raise LossError(
                    f"loss_weights[{pattern!r}] must be a number or a callable of the step, "
                    f"got {weight!r}."
                )

    def signature(self) -> tuple:
        """Something that differs when the weights do; a step traced before is then stale."""
        return tuple((k, id(v) if callable(v) else v) for k, v in self._patterns.items())

    def of(self, name: str) -> Weight:
        """The weight of a loss, 1.0 if no pattern matches.

        Raises LossError if several globs match.
        """
        if name in self._patterns:
            return self._patterns[name]
        found = [p for p in self._patterns if fnmatch.fnmatchcase(name, p)]
        if len(found) > 1:
            raise LossError(
                f"Loss {name!r} matches several patterns of loss_weights: "
                f"{', '.join(map(repr, found))}. Give its weight under its own name."
            )
        return self._patterns[found[0]] if found else 1.0

    def check_all_used(self, names: Sequence[str]) -> None:
        """Raises LossError for a pattern that matches none of the step's losses."""
        for pattern in self._patterns:
            if pattern not in names and not fnmatch.filter(names, pattern):
                near = difflib.get_close_matches(pattern, names, 1)
                raise LossError(
                    f"loss_weights[{pattern!r}] matches no loss. The losses are: "
                    f"{', '.join(names)}." + (f" Did you mean {near[0]!r}?" if near else "")
                )

    def apply(self, losses: Mapping[str, tf.Tensor], step: tf.Tensor) -> dict[str, tf.Tensor]:
        """`{name: weight * loss}`; a loss whose weight is exactly 1.0 is the tensor itself."""
        weighted = {}
        for name, value in losses.items():
            weight = self.of(name)
            if callable(weight):
                weighted[name] = tf.cast(weight(step), tf.float32) * value
            else:
                weighted[name] = value if weight == 1.0 else float(weight) * value
        return weighted


def check_reaches_variables(
    losses: Mapping[str, tf.Tensor], returned: Any, variables: Iterable[Any]
) -> None:
    """Raises LossError naming each loss from which no gradient can reach a variable.

    Walks the traced graph from the loss back through floating-point tensors that a gradient
    can pass; exact gradients of each loss would cost a backward trace each. Nothing is
    checked in eager mode. A loss returned as a Python float is meant as a constant.
    """
    if tf.executing_eagerly():
        return
    targets = _handles(variables)
    constants = {k for k, v in _flatten(returned).items() if isinstance(v, float)}
    for name, value in losses.items():
        if name not in constants and not _reaches(value, targets):
            raise LossError(
                f"The gradient of loss {name!r} reaches no trainable variable. Is its input "
                "behind tf.stop_gradient, an integer cast or argmax, or are all layers that "
                "it depends on frozen (trainable=False)? Report it with "
                "tfloss.summary.scalar if it is only to be watched."
            )


def reach(variables: Iterable[Any]) -> Callable[[tf.Tensor], bool]:
    """Tells whether a gradient of a tensor of the current graph can reach one of the variables.

    Ask for it outside of the model's `call`: in there, autocasting shows tensors for variables.
    """
    targets = _handles(variables)
    return lambda tensor: _reaches(tensor, targets)


_NO_GRADIENT = {"StopGradient", "PreventGradient", "Round", "Rint", "Floor", "Ceil", "Sign"}


def _handles(variables: Iterable[Any]) -> set[str]:
    values = [v.value if isinstance(v, keras.Variable) else v for v in variables]
    return {_upstream.captured_here(value.handle).name for value in values}


def _reaches(tensor: tf.Tensor, targets: set[str]) -> bool:
    seen: set[str] = set()
    todo = [tensor]
    while todo:
        one = todo.pop()
        if one.name in targets:
            return True
        if one.op.name in seen or one.op.type in _NO_GRADIENT:
            continue
        seen.add(one.op.name)
        todo += [
            x
            for x in one.op.inputs
            if x.dtype.is_floating or x.dtype.is_complex or x.dtype in (tf.resource, tf.variant)
        ]
    return False
