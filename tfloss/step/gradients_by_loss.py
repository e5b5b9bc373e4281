"""The gradient of each loss alone, on variables that several losses share. Replica code, traced.

Balancers and `hooks.Watch` ask for them. They cost one backward pass for each loss, so nothing of
this is in a step that nobody asks.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfloss.balancing import GradientProducts
from tfloss.errors import LossError
from tfloss.optimizers.sparse_gradients import in_form
from tfloss.optimizers.variable_globs import matches, matching
from tfloss.step.overwritten_variables import is_overwritten

Place = tuple[str, int]
"""A group, and the index of one of its variables."""


@dataclasses.dataclass(frozen=True)
class LossGradientRequest:
    """Whose gradients somebody needs, and on which variables.

    Attributes:
      owner: Who needs them, for messages.
      losses: Chooses from the names of the losses of a forward pass, in the order that is wanted.
      globs: Globs of variables. Of these, the ones that at least two of the losses reach are used.
      required: Whether it is an error that a glob matches nothing, or that the losses share no such
        variable.
    """

    owner: str
    losses: Callable[[Sequence[str]], Sequence[str]]
    globs: tuple[str, ...]
    required: bool


@dataclasses.dataclass(frozen=True)
class ByLoss:
    """Describes gradients by loss. It is the same on all replicas.

    Attributes:
      losses: Names of the losses.
      variables: Places of the variables.
      parts: For each request, the indices of its losses and of its variables in these. A request
        without variables that are shared has none of both.
    """

    losses: tuple[str, ...] = ()
    variables: tuple[Place, ...] = ()
    parts: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()

    def products(self, each: Sequence[tf.Tensor], request: int) -> GradientProducts | None:
        """Returns the scalar products that a request is about. Traced.

        Args:
          each: `scalar_products` of each variable.
          request: Number of the request.

        Returns:
          The products, summed over its variables; None if there are none.
        """
        losses, variables = self.parts[request]
        if not variables:
            return None
        total = tf.add_n([each[i] for i in variables])
        total = tf.gather(tf.gather(total, losses), losses, axis=1)
        return GradientProducts(tuple(self.losses[i] for i in losses), total)


def gradients_by_loss(
    gradient: Callable[[str, list[Any]], list[Any]],
    mine: Mapping[str, Sequence[str]],
    variables: Mapping[str, Sequence[Any]],
    due: Sequence[str],
    requests: Sequence[LossGradientRequest],
    model: keras.Model,
) -> tuple[list[list[tf.Tensor]], ByLoss]:
    """Takes the gradient of each loss that a request is about.

    Args:
      gradient: Takes the gradient of a loss by variables; None for those that it doesn't reach.
      mine: `{group: names of the losses that train it}`.
      variables: `{group: variables}`.
      due: The groups that are updated.
      requests: The requests.
      model: The model.

    Returns:
      For each loss, its dense gradient of each variable, 0 where it doesn't reach it; what they
      are.

    Raises:
      LossError: The losses of a request share no variable, and it is required.
      ValueError: A glob matches no variable, and it is required.
    """
    names = list(dict.fromkeys(name for each in mine.values() for name in each))
    wanted = [list(request.losses(names)) for request in requests]
    losses = [name for name in names if any(name in each for each in wanted)]
    everything = [v for each in variables.values() for v in each]
    for request in requests:
        for glob in request.globs if request.required else ():
            matching(glob, everything, model, f"{request.owner}: {glob!r}", "trained variable")
    candidates = {
        (group, i): variable
        for group in due
        for i, variable in enumerate(variables[group])
        if not is_overwritten(variable)
        and any(matches(glob, variable, model) for one in requests for glob in one.globs)
    }
    found: dict[str, dict[Place, Any]] = {}
    for name in losses:
        places = [place for place in candidates if name in mine[place[0]]]
        each = gradient(name, [candidates[place] for place in places])
        found[name] = {p: g for p, g in zip(places, each, strict=True) if g is not None}
    chosen = [
        _shared(request, own, candidates, found, complete=set(due) == set(variables), model=model)
        for request, own in zip(requests, wanted, strict=True)
    ]
    union = list(dict.fromkeys(place for each in chosen for place in each))
    parts = tuple(
        (tuple(map(losses.index, own)), tuple(map(union.index, places))) if places else ((), ())
        for own, places in zip(wanted, chosen, strict=True)
    )
    dense = [[_dense(found[name].get(p), candidates[p]) for p in union] for name in losses]
    return dense, ByLoss(tuple(losses), tuple(union), parts)


def _shared(
    request: LossGradientRequest,
    losses: Sequence[str],
    candidates: Mapping[Place, Any],
    found: Mapping[str, Mapping[Place, Any]],
    *,
    complete: bool,
    model: keras.Model,
) -> list[Place]:
    """The variables of a request that at least two of its losses reach."""
    places = [
        place
        for place, variable in candidates.items()
        if any(matches(glob, variable, model) for glob in request.globs)
        and sum(place in found[name] for name in losses) > 1
    ]
    if not places and request.required and complete and len(losses) > 1:
        raise LossError(
            f"{request.owner} balances the losses {', '.join(losses)}, but there is no "
            f"variable that matches {', '.join(map(repr, request.globs))} and that two of them "
            "reach."
        )
    return places


def _dense(gradient: Any, variable: Any) -> tf.Tensor:
    if gradient is None:
        return tf.zeros(variable.shape, variable.dtype)
    return in_form(gradient, variable, "dense")


def scalar_products(gradients: Sequence[tf.Tensor]) -> tf.Tensor:
    """The scalar products of the losses' gradients of one variable. Traced.

    Args:
      gradients: The gradient of each loss, of one shape and dtype.

    Returns:
      float32 [losses, losses].
    """
    rows = tf.stack([tf.reshape(one, [-1]) for one in gradients])
    if rows.dtype.size < tf.float32.size:
        rows = tf.cast(rows, tf.float32)
    products = tf.linalg.matmul(rows, rows, adjoint_b=True)
    return tf.cast(tf.math.real(products), tf.float32)
