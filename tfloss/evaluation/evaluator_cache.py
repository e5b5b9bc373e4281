"""Keeps the evaluators of one model, so that each set of metrics is traced only once."""

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from tfloss.evaluation.evaluator import Evaluator
from tfloss.evaluation.metrics import BoundMetric, HostMetric
from tfloss.forward.losses import LossWeights


class EvaluatorCache:
    """The evaluators of one model. Host code.

    Attributes:
      MAX_SIZE: Maximum number of evaluators. Each holds its metrics and a trace.
    """

    MAX_SIZE = 8

    def __init__(
        self, model: keras.Model, loss_weights: LossWeights, strategy: tf.distribute.Strategy
    ):
        """Creates an empty cache.

        Args:
          model: Model to evaluate.
          loss_weights: Weights for `losses/total`.
          strategy: Strategy in whose scope evaluators are created.
        """
        self._model, self._weights, self._strategy = model, loss_weights, strategy
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
            with self._strategy.scope():
                self._evaluators[key] = Evaluator(
                    self._model, metrics, losses=losses, loss_weights=self._weights
                )
        return self._evaluators[key]
