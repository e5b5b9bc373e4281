"""Weighs losses by their learned homoscedastic uncertainty (Kendall, Gal and Cipolla, CVPR 2018).

loss_weights=tfloss.balancing.Uncertainty(["depth", "class"], classification=["class"])
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfloss.balancing.balancer import PREFIX, GradientProducts, TrainedWeights
from tfloss.errors import LossError
from tfloss.forward.losses import LossWeights, Weight


class Uncertainty(TrainedWeights):
    """Minimises the sum of `factor * exp(-s) * loss + s / 2`, and learns `s` for each loss.

    `s` is the logarithm of the variance, the square of sigma in equations 7 and 10 of the paper.
    The factor is 1/2 for the loss of a regression (a squared error), and 1 for that of a
    classification (a cross-entropy). The log-variances are saved in checkpoints as
    `loss_weights/log_variance/<loss>`, and are the same on all replicas. The curve
    `weighted_losses/<loss>` has the term of each loss, and `loss_weights/<loss>` its current
    weight, `factor * exp(-s)`.

    It needs no further backward pass: the derivative by `s` follows from the value of the loss.

    Args:
      losses: Names of the losses. The others keep their weight.
      classification: Those that are cross-entropies.
      optimizer: Keras optimizer of the log-variances; `Adam(1e-3)` by default. In the paper it is
        that of the model: give one of the same class with the same arguments.
      weights: Fixed weights or schedules, by which the losses are multiplied first.

    Raises:
      LossError: There are fewer than two losses, or `classification` has others.
      ValueError: The optimizer can't be used.
    """

    def __init__(
        self,
        losses: Sequence[str],
        *,
        classification: Sequence[str] = (),
        optimizer: keras.optimizers.Optimizer | None = None,
        weights: Mapping[str, Weight] | None = None,
    ):
        optimizer = optimizer or keras.optimizers.Adam(1e-3)
        super().__init__(losses, weights, optimizer, initial=0.0, kind="log_variance")
        for name in [classification] if isinstance(classification, str) else classification:
            if name not in losses or isinstance(classification, str):
                raise LossError(
                    f"Uncertainty(classification={classification!r}) must be a list of some of its "
                    f"losses: {', '.join(losses)}."
                )
        self._classification = tuple(classification)

    def apply(self, losses: Mapping[str, tf.Tensor], step: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the term of each loss in the objective. Runs traced, in replica code."""
        found = super().apply(losses, step)
        for name in self.balanced(losses):
            found[name] = self._weight(name) * found[name] + 0.5 * self.number(name)
        return found

    def update(
        self, losses: Mapping[str, tf.Tensor], gradients: GradientProducts | None, step: tf.Tensor
    ) -> None:
        """Moves the log-variances by the derivatives of the objective."""
        fixed = LossWeights.apply(self, losses, step)
        self.train({k: 0.5 - self._weight(k) * fixed[k] for k in self.balanced(losses)})

    def scalars(self) -> dict[str, tf.Tensor]:
        """Returns the weights by tag."""
        return {f"{PREFIX}/{name}": self._weight(name) for name in self.losses or ()}

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments that the traced step depends on, as JSON values."""
        return {**super().arguments(), "classification": ", ".join(self._classification)}

    def _weight(self, name: str) -> tf.Tensor:
        factor = 1.0 if name in self._classification else 0.5
        return factor * tf.exp(-self.number(name))
