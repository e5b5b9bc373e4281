"""What a balancer of losses does in one `minimize` call. Cross-replica, traced.

Its weights are part of the forward pass, as fixed ones are. It may change the reduced gradients
before they are clipped, and its own variables after the update.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfloss.balancing import Balancer
from tfloss.optimizers.sparse_gradients import in_form
from tfloss.step.backward import BackwardTrace
from tfloss.step.gradients_by_loss import LossGradientRequest
from tfloss.step.output import ReplicaSpec
from tfloss.step.update import Combine, Reduced

_REQUEST = 0  # its place among the requests


@dataclasses.dataclass(frozen=True)
class Balance:
    """A balancer in one `minimize` call.

    Attributes:
      strategy: The strategy that the step runs under.
      balancer: The balancer.
      variables: `{group: variables that it trains}`.
      step: int64 scalar, the number of completed updates.
    """

    strategy: tf.distribute.Strategy
    balancer: Balancer
    variables: Mapping[str, Sequence[Any]]
    step: tf.Tensor

    def requests(self) -> list[LossGradientRequest]:
        """The gradients that it needs, as the first request of the pass, or none."""
        balancer = self.balancer
        if balancer.shared is None:
            return []
        name, globs = type(balancer).__name__, (balancer.shared,)
        return [LossGradientRequest(name, balancer.balanced, globs, required=True)]

    def combine(self, trace: BackwardTrace, due: Sequence[str]) -> Combine | None:
        """The function that changes the reduced gradients.

        Args:
          trace: What is known of the passes.
          due: The groups whose gradients these are.
        """
        if self.balancer.shared is None or not trace.by_loss.parts[_REQUEST][1]:
            return None

        def combined(
            weights: list[list[Any]], by_loss: list[list[tf.Tensor]], products: list[tf.Tensor]
        ) -> list[list[Any]]:
            gradients = trace.by_loss.products(products, _REQUEST)
            assert gradients is not None
            factors = self.balancer.factors(gradients, self.step)
            if factors is None:
                return weights
            losses, variables = trace.by_loss.parts[_REQUEST]
            changed = [list(each) for each in weights]
            for place in variables:
                group, index = trace.by_loss.variables[place]
                i, j = due.index(group), trace.spec.reached[group].index(index)
                total = in_form(changed[i][j], self.variables[group][index], "dense")
                # What is not projected stays as it is, bit for bit.
                more = [
                    tf.cast(factors[k] - 1.0, total.dtype) * tf.cast(by_loss[n][place], total.dtype)
                    for k, n in enumerate(losses)
                ]
                changed[i][j] = tf.add_n([total, *more])
            return changed

        return combined

    def must_be_finite(
        self, spec: ReplicaSpec, reduced: Reduced
    ) -> dict[str, tuple[tf.Tensor, str]]:
        """What the balancer needs to be finite (see `Balancer.must_be_finite`).

        Args:
          spec: Description of the vector.
          reduced: The reduced losses and gradients.
        """
        each = tf.unstack(reduced.vector[: len(spec.losses)])
        return self.balancer.must_be_finite(dict(zip(spec.losses, each, strict=True)))

    def update(self, trace: BackwardTrace, reduced: Reduced, after: tf.Tensor) -> None:
        """Changes the balancer's variables.

        Args:
          trace: What is known of the passes.
          reduced: The reduced losses and gradients.
          after: Tensor that must be computed before anything is changed.
        """
        names = trace.spec.losses
        if not self.balancer.balanced(names):
            return

        def replica(vector: tf.Tensor, products: list[tf.Tensor], step: tf.Tensor) -> None:
            losses = dict(zip(names, tf.unstack(vector), strict=True))
            gradients = None
            if self.balancer.shared is not None:
                gradients = trace.by_loss.products(products, _REQUEST)
            with tf.control_dependencies([after]):
                self.balancer.update(losses, gradients, step)

        values = reduced.vector[: len(names)]
        self.strategy.run(replica, args=(values, reduced.products, self.step))
