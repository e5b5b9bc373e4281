"""Projects conflicting gradients of losses (Yu et al., NeurIPS 2020).

loss_weights=tfloss.balancing.PCGrad(["depth", "class"])
"""

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfloss.balancing.balancer import Balancer, GradientProducts
from tfloss.forward.losses import REGULARIZATION, Weight


class PCGrad(Balancer):
    """Removes from the gradient of each loss its part against that of another one (algorithm 1).

    The gradients are those of the global batch. For each loss, the others are gone through in a
    random order, which depends on the seed and the step only. Variables that one loss alone
    reaches, such as those of its head, get their plain gradient. It has no state.

    **Each step has one more backward pass for each loss**, and on several replicas reduces as many
    gradients of the shared variables. They need memory for as many copies of these variables. A
    gradient of an embedding becomes dense.

    Args:
      losses: Names of the losses. None: all but the weight regularizers.
      shared: Glob of the variables whose gradients are projected (see
        `tfloss.optimizers.variable_globs`). Of these, the ones that at least two of the losses
        reach are used.
      seed: Seed of the order.
      weights: Fixed weights or schedules, by which the losses are multiplied first.

    Raises:
      LossError: There are fewer than two losses. When the step is traced: they share no such
        variable.
    """

    def __init__(
        self,
        losses: Sequence[str] | None = None,
        *,
        shared: str = "*",
        seed: int = 0,
        weights: Mapping[str, Weight] | None = None,
    ):
        super().__init__(losses, weights, shared)
        self._seed = int(seed)

    def balanced(self, losses: Any) -> tuple[str, ...]:
        """Returns which of the losses of a forward pass are balanced."""
        return tuple(name for name in super().balanced(losses) if name != REGULARIZATION)

    def factors(self, gradients: GradientProducts, step: tf.Tensor) -> tf.Tensor:
        """Returns by what the gradient of each loss is multiplied in the sum of the projections.

        A projected gradient is a linear combination of the gradients, so their scalar products are
        all that is needed.
        """
        products, count = gradients.products, len(gradients.losses)
        order = random_order(self._seed, step, count)
        projected = []
        for i in range(count):
            mine = tf.one_hot(i, count)
            for place in range(count):
                j = order[i, place]
                dot = tf.tensordot(mine, products[:, j], 1)
                against = (dot < 0.0) & (j != i)
                part = tf.where(against, tf.math.divide_no_nan(dot, products[j, j]), 0.0)
                mine -= part * tf.one_hot(j, count)
            projected.append(mine)
        return tf.add_n(projected)

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments that the traced step depends on, as JSON values."""
        return {**super().arguments(), "shared": self.shared, "seed": self._seed}


def random_order(seed: int, step: tf.Tensor, count: int) -> tf.Tensor:
    """Returns the order in which each loss meets the others, itself included. Traced.

    Args:
      seed: The seed.
      step: int64 scalar, the number of completed updates.
      count: Number of losses.

    Returns:
      int32 [count, count]: a permutation in each row.
    """
    seeds = tf.stack([tf.constant(seed, tf.int64), tf.cast(step, tf.int64)])
    return tf.argsort(tf.random.stateless_uniform([count, count], seeds), axis=1)
