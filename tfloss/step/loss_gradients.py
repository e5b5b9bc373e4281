"""Finds the losses and variables whose gradients are not finite. Host code around traced code.

It repeats the forward pass of a step that has failed, and takes the gradient of each loss alone.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfloss import _upstream
from tfloss.errors import NonFiniteGradient
from tfloss.forward.context import forward_context
from tfloss.forward.losses import collect
from tfloss.optimizers.groups import split_losses
from tfloss.step.backward import Backward, tf_variables
from tfloss.step.traced_calls import split_static


@dataclasses.dataclass(frozen=True)
class _Names:
    """What the rows and columns of the results mean: `{group: names}`."""

    losses: dict[str, list[str]]
    variables: dict[str, list[str]]


def find_nonfinite(
    strategy: tf.distribute.Strategy,
    backward: Backward,
    evidence: Sequence[Any],
    micro_batches: int,
    step: int,
    groups: Sequence[str],
) -> tuple[NonFiniteGradient, ...]:
    """Finds what is not finite in the gradients of a step. It changes the state of the model.

    Args:
      strategy: The strategy that the step runs under, of a single worker.
      backward: The pass that failed.
      evidence: The batches, replica by replica, and in each the micro-batches in order.
      micro_batches: Number of micro-batches.
      step: Number of completed updates.
      groups: The groups whose gradients are not finite.
    """
    replicas = len(evidence) // micro_batches
    weight = 1.0 / len(evidence)
    function, static = split_static(
        lambda batch, step: _each_loss(backward, batch, step, weight, groups)
    )
    run = tf.function(lambda *arguments: strategy.run(function, args=arguments), autograph=False)
    # [losses, variables] of each group
    largest: dict[str, Any] = {}
    for micro in range(micro_batches):
        mine = [evidence[replica * micro_batches + micro] for replica in range(replicas)]
        batch = mine[0]
        if replicas > 1:
            batch = strategy.experimental_distribute_values_from_function(
                lambda context, mine=mine: mine[int(context.replica_id_in_sync_group)]
            )
        found = run(batch, tf.constant(step, tf.int64))
        for group in groups:
            parts = strategy.experimental_local_results(found[group])
            for part, one in zip(parts, mine, strict=True):
                number = backward.layout.count(one)
                if number is None or int(number) > 0:  # a mean over no examples is NaN
                    before = largest.get(group, 0.0)
                    # Not `fmax`: NaN must win.
                    largest[group] = np.maximum(before, part.numpy())
    names = static[-1]
    return tuple(
        _summary(group, names.losses[group], names.variables[group], largest[group])
        for group in groups
        if group in largest
    )


def _summary(
    group: str, losses: list[str], variables: list[str], largest: np.ndarray
) -> NonFiniteGradient:
    bad = np.logical_not(np.isfinite(largest))
    columns = np.any(bad, axis=0)
    return NonFiniteGradient(
        group,
        losses=tuple(name for name, row in zip(losses, bad, strict=True) if row.any()),
        variables=tuple(name for name, one in zip(variables, columns, strict=True) if one),
        largest=float(largest.max()),
    )


def _each_loss(
    backward: Backward, batch: Any, step: tf.Tensor, weight: float, groups: Sequence[str]
) -> tuple[dict[str, tf.Tensor], _Names]:
    """Takes the gradient of each loss. Replica code, traced.

    Returns:
      `{group: float64 [losses, variables]}`, the largest magnitude of each gradient, NaN if it is
      not finite; what the rows and columns are.
    """
    everything = [v for mine in backward.variables.values() for v in mine]
    with (
        tf.GradientTape(persistent=True) as tape,
        _upstream.inputs_untouched(backward.model),
    ):
        tape.watch(tf_variables(everything))
        with forward_context(step, False, weight) as context:
            returned = backward.forward(batch)
        losses = collect(returned, context, everything)
        weighted = backward.loss_weights.apply(losses, context.step)
    mine = split_losses(losses, backward.variables)
    found = {}
    with context.backward():
        for group in groups:
            variables = tf_variables(backward.variables[group])
            rows = [tape.gradient(weighted[name], variables) for name in mine[group]]
            found[group] = tf.stack([tf.stack([_largest(one) for one in row]) for row in rows])
    names = _Names(
        {group: list(mine[group]) for group in groups},
        {group: [v.path for v in backward.variables[group]] for group in groups},
    )
    return found, names


def _largest(gradient: Any) -> tf.Tensor:
    """The largest magnitude, float64; NaN if the gradient is not finite, 0 without one."""
    if gradient is None:
        return tf.constant(0.0, tf.float64)
    values = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
    values = tf.concat([tf.cast(tf.reshape(values, [-1]), tf.float64), [0.0]], 0)
    finite = tf.reduce_all(tf.math.is_finite(values))
    return tf.where(finite, tf.reduce_max(tf.abs(values)), float("nan"))
