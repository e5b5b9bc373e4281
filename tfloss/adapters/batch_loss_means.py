"""Means of named losses over batches, as one Keras metric."""

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf


class BatchLossMeans(keras.Metric):
    """The means of named losses over batches, weighted by their numbers of examples.

    The names are those of the first update. The result is a mapping from them.
    """

    def __init__(self) -> None:
        super().__init__(name="losses")
        self._means: dict[str, keras.metrics.Mean] = {}

    def update_state(self, values: Mapping[str, Any], sample_weight: Any = None) -> None:
        """Adds a batch.

        Args:
          values: Losses by name, scalars.
          sample_weight: Number of examples, or None.
        """
        for name, value in values.items():
            if name not in self._means:
                with tf.init_scope():  # the first update is traced
                    self._means[name] = keras.metrics.Mean(name=name)
            self._means[name].update_state(value, sample_weight)

    def reset_state(self) -> None:
        """Forgets all batches."""
        for mean in self._means.values():
            mean.reset_state()

    def result(self) -> dict[str, Any]:
        """Returns `{name: mean}`."""
        return {name: mean.result() for name, mean in self._means.items()}
