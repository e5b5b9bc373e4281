"""Gives losses weights that bring their gradients to a common scale (Chen et al., ICML 2018).

loss_weights=tfloss.balancing.GradNorm(["depth", "class"], shared="trunk/last/*", alpha=1.5)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfloss.balancing.balancer import PREFIX, GradientProducts, TrainedWeights
from tfloss.errors import LossError
from tfloss.forward.losses import Weight

_LEAST = 1e-3  # of a weight, before the weights are normalised


class GradNorm(TrainedWeights):
    """Learns weights so that losses which fall slowly have larger gradients (algorithm 1).

    The weights begin with 1, and their sum stays the number of losses. With G the norm of the
    gradient of `weight * loss` on the shared variables, and `r` the loss divided by its first value
    and by the mean of these ratios, each weight is moved by the gradient of
    `|G - mean(G) * r ** alpha|`. So `alpha=0` makes all norms equal. As usual, a weight stays
    positive: it is at least 0.001 before the weights are normalised.

    The losses must belong to one forward pass, and with `alpha > 0` be positive: training stops
    before an update by a loss that is negative or begins with 0 (see `tfloss.hooks.NaNGuard`).
    The weights and the first losses are saved in checkpoints as `loss_weights/weight/<loss>` and
    `loss_weights/first/<loss>`, and logged as `loss_weights/<loss>`.

    Each step has one more backward pass for each loss, down to the shared variables. It is cheap if
    these are the last layer that the losses share, as in the paper. On several replicas their
    gradients are reduced like that of the objective.

    Args:
      losses: Names of the losses. The others keep their weight.
      shared: Glob of the variables on which the norms are taken (see
        `tfloss.optimizers.variable_globs`). Of these, the ones that at least two of the losses
        reach are used.
      alpha: Strength of the restoring force, at least 0.
      optimizer: Keras optimizer of the weights; `Adam(0.025)` by default.
      weights: Fixed weights or schedules, by which the losses are multiplied first.

    Raises:
      LossError: There are fewer than two losses. When the step is traced: some of them are
        missing in the forward pass, or share no such variable.
      ValueError: `alpha` is negative, or the optimizer can't be used.
    """

    def __init__(
        self,
        losses: Sequence[str],
        shared: str = "*",
        *,
        alpha: float = 1.5,
        optimizer: keras.optimizers.Optimizer | None = None,
        weights: Mapping[str, Weight] | None = None,
    ):
        if not alpha >= 0:
            raise ValueError(f"GradNorm(alpha={alpha!r}): alpha must be at least 0.")
        optimizer = optimizer or keras.optimizers.Adam(0.025)
        super().__init__(losses, weights, optimizer, initial=1.0, kind="weight", shared=shared)
        self._alpha = float(alpha)
        self._first: dict[str, Any] = {}  # 0 before the first update

    def create_variables(self) -> None:
        """Creates the weights, the slots of their optimizer, and the first losses."""
        super().create_variables()
        self._first = self.new_variables("first", 0.0)

    def state(self) -> dict[str, Any]:
        """Returns the variables by their names in a checkpoint."""
        return {**super().state(), **{f"{PREFIX}/first/{k}": v for k, v in self._first.items()}}

    def apply(self, losses: Mapping[str, tf.Tensor], step: tf.Tensor) -> dict[str, tf.Tensor]:
        """Multiplies losses by their weights. Runs traced, in replica code."""
        found = super().apply(losses, step)
        for name in self.balanced(losses):
            found[name] = self.number(name) * found[name]
        return found

    def update(
        self, losses: Mapping[str, tf.Tensor], gradients: GradientProducts | None, step: tf.Tensor
    ) -> None:
        """Moves the weights, and normalises them."""
        names = self.balanced(losses)
        if names and names != self.losses:
            missing = [name for name in self.losses or () if name not in names]
            raise LossError(
                f"GradNorm compares the losses of one forward pass, and this one has no "
                f"{', '.join(map(repr, missing))}. It reports: {', '.join(losses)}."
            )
        if gradients is None:
            return
        weights = tf.stack([self.number(name) for name in names])
        values = tf.stack([losses[name] for name in names])
        saved = tf.stack([tf.convert_to_tensor(self._first[name].value) for name in names])
        first = tf.where(saved == 0.0, values, saved)
        norms = tf.sqrt(tf.linalg.diag_part(gradients.products))
        ratios = values / first
        target = tf.reduce_mean(norms) * (ratios / tf.reduce_mean(ratios)) ** self._alpha
        slopes = tf.sign(norms - target) * norms / weights
        # Gradients that overflow with a loss scale must not enter the weights.
        finite = tf.reduce_all(tf.math.is_finite(norms) & tf.math.is_finite(target))
        slopes = tf.where(finite, slopes, 0.0)
        self.train(dict(zip(names, tf.unstack(slopes), strict=True)))
        moved = tf.maximum(tf.stack([self.number(name) for name in names]), _LEAST)
        moved *= len(names) / tf.reduce_sum(moved)
        for name, weight, loss in zip(names, tf.unstack(moved), tf.unstack(first), strict=True):
            self._numbers[name].assign(weight)
            self._first[name].assign(loss)

    def must_be_finite(self, losses: Mapping[str, tf.Tensor]) -> dict[str, tuple[tf.Tensor, str]]:
        """Returns the weights, with NaN for that of a loss that has no relative rate."""
        found: dict[str, tuple[tf.Tensor, str]] = {}
        for name in self.balanced(losses) if self._alpha else ():
            value, saved = losses[name], tf.convert_to_tensor(self._first[name].value)
            usable = (tf.where(saved == 0.0, value, saved) > 0.0) & (value >= 0.0)
            usable |= tf.math.is_nan(value)  # which is found anyway
            found[f"{PREFIX}/{name}"] = (
                tf.where(usable, self.number(name), float("nan")),
                f"GradNorm compares how fast losses fall, so {name!r} must be positive at first, "
                "and never negative. Give GradNorm alpha=0, which compares the gradients alone, or "
                f"leave {name!r} out of its list, or add a constant to the loss.",
            )
        return found

    def scalars(self) -> dict[str, tf.Tensor]:
        """Returns the weights by tag."""
        return {f"{PREFIX}/{name}": self.number(name) for name in self.losses or ()}

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments that the traced step depends on, as JSON values."""
        return {**super().arguments(), "shared": self.shared, "alpha": self._alpha}
