"""From the gradients of each replica to an update: reduced, unscaled, clipped, applied.

Cross-replica, traced.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.optimizers.fused_adam import fused_updates
from tfloss.optimizers.groups import Group
from tfloss.optimizers.sparse_gradients import Form, in_form
from tfloss.step.all_reduce import max_over_replicas, sum_over_replicas
from tfloss.step.backward import Gradients
from tfloss.step.finite_check import element_sum
from tfloss.step.gradients_by_loss import scalar_products
from tfloss.step.overwritten_variables import is_overwritten

Combine = Callable[[list[list[Any]], list[list[tf.Tensor]], list[tf.Tensor]], list[list[Any]]]
"""Makes gradients of `Gradients.weights`, `Gradients.by_loss` and the scalar products."""


@dataclasses.dataclass(frozen=True)
class Reduced:
    """Gradients that are the same on all replicas.

    Attributes:
      vector: float32 [n]; `ReplicaSpec` describes it.
      gradients: PerReplica `Gradients`.
      norms: float32 scalars, the global norm of each group's gradient before clipping; empty if
        they were not computed.
      sums: float32 scalars, `element_sum` of each group's gradient; empty if they were not
        computed.
      products: For each variable of `Gradients.by_loss`, its `scalar_products`.
    """

    vector: tf.Tensor
    gradients: Any
    norms: list[tf.Tensor]
    sums: list[tf.Tensor]
    products: list[tf.Tensor]


def reduce(
    strategy: tf.distribute.Strategy,
    vector: Any,
    gradients: Any,
    variables: Sequence[list[Any]],
    sparse: Sequence[Form],
    *,
    scale: tf.Tensor | None,
    clip_norm: float | None,
    norms: bool,
    sums: bool,
    combine: Combine | None = None,
) -> Reduced:
    """Reduces vector and gradients over replicas; then unscales, then clips each group.

    Values that overwrite a variable are neither scaled nor clipped, and have no part in a norm.

    Args:
      strategy: The strategy that the step runs under.
      vector: PerReplica float32 [n].
      gradients: PerReplica `Gradients`.
      variables: For each group, the variables that `Gradients.weights` belong to.
      sparse: For each group, the form of its sparse gradients.
      scale: float32 scalar by which the objective was multiplied, or None.
      clip_norm: Global norm that each group's gradient is clipped to, or None.
      norms: Whether to compute norms even without clipping.
      sums: Whether to compute sums if there are no norms.
      combine: Changes the gradients of the groups, before they are clipped. None: nothing does.
    """
    norms = norms or clip_norm is not None

    def replica(vector: tf.Tensor, gradients: Gradients) -> Any:
        weights, overwriting, by_loss = gradients
        if strategy.num_replicas_in_sync > 1:
            nested = [*weights, *by_loss]
            vector, *flat = sum_over_replicas([vector, *(g for each in nested for g in each)])
            nested = _nested(flat, nested)
            weights, by_loss = nested[: len(weights)], nested[len(weights) :]
            if any(overwriting):
                flat = max_over_replicas([value for each in overwriting for value in each])
                overwriting = _nested(flat, overwriting)
        if scale is not None:
            weights = [[_scaled(g, 1.0 / scale) for g in each] for each in weights]
            by_loss = [[_scaled(g, 1.0 / scale) for g in each] for each in by_loss]
        products = [scalar_products(of_one) for of_one in zip(*by_loss, strict=True)]
        if combine is not None:
            weights = combine(weights, by_loss, products)
        weights = [
            [in_form(g, v, form) for g, v in zip(each, mine, strict=True)]
            for each, mine, form in zip(weights, variables, sparse, strict=True)
        ]
        found = []
        if norms:
            found = [_norm(each) for each in weights]
        elif sums:
            found = [
                element_sum([*each, *over]) for each, over in zip(weights, overwriting, strict=True)
            ]
        if clip_norm is not None:
            weights = [
                tf.clip_by_global_norm(each, clip_norm, use_norm=norm)[0]
                for each, norm in zip(weights, found, strict=True)
            ]
        return vector, Gradients(weights, overwriting, by_loss), found, products

    vector, gradients, found, products = strategy.run(replica, args=(vector, gradients))
    local = strategy.experimental_local_results
    first = [local(one)[0] for one in found]
    norm, total = (first, []) if norms else ([], first)
    return Reduced(local(vector)[0], gradients, norm, total, [local(one)[0] for one in products])


def _nested(flat: list[Any], like: list[list[Any]]) -> list[list[Any]]:
    rest = iter(flat)
    return [[next(rest) for _ in each] for each in like]


def _norm(gradients: list[Any]) -> tf.Tensor:
    """The global norm, float32. TensorFlow refuses gradients of several dtypes."""
    by_dtype: dict[Any, list[Any]] = {tf.float32: []}
    for one in gradients:
        value = one.values if isinstance(one, tf.IndexedSlices) else one
        if value.dtype.is_complex:
            value = tf.abs(value)
        if value.dtype.size < tf.float32.size:
            value = tf.cast(value, tf.float32)  # the square of 256 overflows float16
        by_dtype.setdefault(value.dtype, []).append(value)
    norms = [tf.cast(tf.linalg.global_norm(each), tf.float32) for each in by_dtype.values() if each]
    if not norms:
        return tf.constant(0.0)
    return norms[0] if len(norms) == 1 else tf.linalg.global_norm(norms)


def apply(
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    gradients: Any,
    groups: Sequence[Group],
    variables: Sequence[list[Any]],
    after: tf.Tensor,
    *,
    fused_adam: bool,
) -> None:
    """Applies the gradients of each group with its optimizer.

    Args:
      strategy: The strategy that the step runs under.
      model: The model that the variables belong to.
      gradients: PerReplica `Gradients`, reduced.
      groups: The groups that are due.
      variables: For each group, the variables of `Gradients.weights`, then those of
        `Gradients.overwriting`.
      after: Tensor that must be computed before anything is changed.
      fused_adam: Whether Adam is one op for each variable (`tfloss.optimizers.fused_adam`).
    """

    def replica(gradients: Gradients) -> None:
        pairs = zip(gradients.weights, gradients.overwriting, strict=True)
        for group, mine, (each, over) in zip(groups, variables, pairs, strict=True):
            optimizer = group.optimizer
            with _upstream.gradients_already_reduced(optimizer):
                with tf.control_dependencies([after]):
                    optimizer.apply([*each, *over], mine)

    with contextlib.ExitStack() as stack:
        for group in groups if fused_adam else ():
            stack.enter_context(fused_updates(group.optimizer))
        for group, mine in zip(groups, variables, strict=True):
            if group.rate_multipliers and not all(map(is_overwritten, mine)):
                factor = functools.partial(group.multiplier, model=model)
                stack.enter_context(_upstream.scaled_updates(group.optimizer, factor))
        strategy.run(replica, args=(gradients,))


def read_states(strategy: tf.distribute.Strategy, states: Callable[[], list[Any]]) -> Any:
    """Reads variables on each replica, at this point of the trace.

    Args:
      strategy: The strategy that the step runs under.
      states: Returns the variables.

    Returns:
      PerReplica copies of the variables.
    """
    return strategy.run(lambda: [tf.identity(state) for state in states()])


def restore_states(
    strategy: tf.distribute.Strategy, states: Callable[[], list[Any]], before: Any
) -> None:
    """Restores variables on each replica.

    Args:
      strategy: The strategy that the step runs under.
      states: Returns the variables.
      before: Result of `read_states`.
    """

    def replica(values: list[tf.Tensor]) -> None:
        for state, value in zip(states(), values, strict=True):
            state.assign(value)

    strategy.run(replica, args=(before,))


def _scaled(gradient: Any, factor: tf.Tensor) -> Any:
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(gradient.values * factor, gradient.indices, gradient.dense_shape)
    return gradient * factor
