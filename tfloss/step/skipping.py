"""Leaves out updates whose losses or gradients are not finite. Cross-replica, traced.

There are two reasons to: `skip_nonfinite`, and a loss scale, which may overflow float16.
"""

from collections.abc import Callable

import tensorflow as tf

from tfloss.optimizers.mixed_precision import LossScale

MOST_SKIPPED = 20  # updates skipped in a row before the guard takes it for a failure


class Skipping:
    """Applies an update or skips it, and counts the updates that were skipped in a row.

    Create it in the strategy's scope.

    Args:
      skip_nonfinite: Whether a loss or gradient that is not finite skips the update.
      loss_scale: The loss scale, if there is one. It follows the decisions.

    Attributes:
      active: Whether an update may be skipped.
      tolerated: How many updates may be skipped in a row, before the next one is a failure.
      in_a_row: int64 variable, the number of updates that were skipped since the last one that
        was applied.
      loss_scale: The loss scale, or None.
    """

    def __init__(self, skip_nonfinite: bool, loss_scale: LossScale | None):
        self.active = skip_nonfinite or loss_scale is not None
        self.tolerated = MOST_SKIPPED if skip_nonfinite else 0
        self.loss_scale = loss_scale
        self.in_a_row = counter("skipped")

    def tolerates(self) -> tf.Tensor | None:
        """Whether an update with a bad loss may be skipped: a bool scalar. None: never."""
        return self.in_a_row < self.tolerated if self.tolerated else None

    def tolerates_gradients(self) -> tf.Tensor | None:
        """Whether an update with a bad gradient may be skipped: a bool scalar. None: never.

        A loss scale makes such gradients now and then, but not once it can't fall any more.
        """
        if self.loss_scale is None:
            return self.tolerates()
        falls = self.loss_scale.can_fall()
        return falls if self.tolerated == 0 else falls | (self.in_a_row < self.tolerated)

    def decide(
        self, finite: tf.Tensor, apply: Callable[[], None], restore: Callable[[], None]
    ) -> tf.Tensor:
        """Applies the update if everything is finite.

        Args:
          finite: bool scalar.
          apply: Applies the update.
          restore: Restores the state from before the forward pass.

        Returns:
          bool scalar, whether the update was applied.
        """

        def applied() -> tf.Tensor:
            apply()
            return tf.constant(True)

        def skipped() -> tf.Tensor:
            restore()
            return tf.constant(False)

        return tf.cond(finite, applied, skipped)

    def record(self, applied: tf.Tensor) -> list[tf.Tensor]:
        """Counts a decision, and adapts the loss scale to it.

        Args:
          applied: bool scalar, whether the update was applied.

        Returns:
          Tensors that must be computed in the step.
        """
        count = tf.where(applied, tf.zeros([], tf.int64), self.in_a_row + 1)
        changed = [tf.identity(self.in_a_row.assign(count))]
        if self.loss_scale is not None:
            changed += [tf.identity(value) for value in self.loss_scale.update(applied)]
        return changed

    def variables(self) -> dict[str, tf.Variable]:
        """Its variables by their names in a checkpoint; none if nothing is ever skipped."""
        found = {"skipped": self.in_a_row} if self.active else {}
        return found if self.loss_scale is None else {**found, **self.loss_scale.variables()}


def counter(name: str) -> tf.Variable:
    """A counter of steps, the same on all replicas.

    Args:
      name: Name of the variable.

    Returns:
      int64 scalar variable, 0 at first.
    """
    return tf.Variable(
        tf.constant(0, tf.int64),
        trainable=False,
        name=name,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )
