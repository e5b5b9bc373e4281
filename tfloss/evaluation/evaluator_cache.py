"""Keeps the evaluators of one model, so that each set of metrics is traced only once."""

from collections.abc import Mapping
from typing import Any

from tfloss.evaluation.evaluator import Evaluator
from tfloss.evaluation.metrics import BoundMetric, HostMetric
from tfloss.step.train_step import TrainStep


class EvaluatorCache:
    """The evaluators of one model. Host code.

    Attributes:
      MAX_SIZE: Maximum number of evaluators. Each holds its metrics and a trace.
    """

    MAX_SIZE = 8

    def __init__(self, train_step: TrainStep):
        """Creates an empty cache.

        Args:
          train_step: Step with the model to evaluate, the weights for `losses/total`, the strategy
            in whose scope evaluators are created, and what counts as an example.
        """
        self._step = train_step
        self._evaluators: dict[tuple[Any, ...], Evaluator] = {}

    def __len__(self) -> int:
        """Returns the number of evaluators."""
        return len(self._evaluators)

    def get(
        self,
        metrics: Mapping[str, BoundMetric | HostMetric],
        losses: bool,
        signature: tuple[Any, ...],
    ) -> Evaluator:
        """Returns the evaluator of these metric objects; creates it if there is none.

        Args:
          metrics: Metrics by name.
          losses: Whether validation losses are computed.
          signature: Hashable value of everything that a trace depends on.
        """
        key = (*((name, id(metric)) for name, metric in metrics.items()), losses, signature)
        if key not in self._evaluators:
            while len(self._evaluators) >= self.MAX_SIZE:
                self._evaluators.pop(next(iter(self._evaluators)))
            step = self._step
            with step.strategy.scope():
                self._evaluators[key] = Evaluator(
                    step.model,
                    metrics,
                    losses=losses,
                    loss_weights=step.loss_weights,
                    batch_layout=step.batch_layout,
                )
        return self._evaluators[key]
