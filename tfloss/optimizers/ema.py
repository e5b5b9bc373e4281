"""Exponential moving averages of a model's weights, for evaluation and export.

    trainer = tfloss.Trainer(model, optimizer, ema=0.999)
    trainer.evaluate(test_set, metrics, ema=True)
    with trainer.averaged():
        tfloss.export(model, ...)

After each update `average = decay * average + (1 - decay) * weight` (Polyak and Juditsky,
1992). A step whose update is left out, and a micro-batch, move nothing.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from tfloss.common.unique_names import unique_name


@dataclasses.dataclass(frozen=True)
class Ema:
    """What is averaged, and how slowly.

    Args:
      decay: between 0 and 1; 0.999 averages over about the last 1,000 updates.
      trainable_only: leave out what is not trained (BatchNormalization's statistics, a frozen
        backbone): it is used as it is.
    """

    decay: float
    trainable_only: bool = False

    def __post_init__(self):
        if not 0.0 < self.decay < 1.0:
            raise ValueError(f"ema={self.decay!r}: the decay must be between 0 and 1.")


class Averages:
    """The averages of one model's floating-point weights. They begin as the weights are.

    Make it in the strategy's scope, when the model is built.
    """

    def __init__(self, ema: Ema, model: keras.Model):
        self._decay = ema.decay
        weights = model.trainable_variables if ema.trainable_only else model.weights
        self._weights = [v for v in weights if tf.as_dtype(v.dtype).is_floating]
        self._averages = [
            # No aggregation: replicas whose statistics differ average their own.
            tf.Variable(tf.cast(v.value, tf.float32), trainable=False, name=_name(v))
            for v in self._weights
        ]

    def update(self) -> None:
        """Replica code, traced: after an update of the weights."""
        for average, weight in zip(self._averages, self._weights, strict=True):
            value = tf.cast(weight.value, tf.float32)
            average.assign_add((1.0 - self._decay) * (value - average))

    def variables(self) -> dict[str, Any]:
        """`{"ema/<path of the weight>": variable}`, for checkpoints."""
        found: dict[str, Any] = {}
        for average, weight in zip(self._averages, self._weights, strict=True):
            found[unique_name(f"ema/{weight.path}", found, "#")] = average
        return found

    @contextlib.contextmanager
    def swapped_in(self, strategy: tf.distribute.Strategy) -> Iterator[None]:
        """The model has the averages inside, and its weights again afterwards. Host code.

        One more copy of the weights is kept meanwhile, on their devices.
        """

        def swap():
            for average, weight in zip(self._averages, self._weights, strict=True):
                value = tf.identity(average)
                average.assign(tf.cast(weight.value, tf.float32))
                weight.value.assign(tf.cast(value, weight.dtype))

        run = tf.autograph.experimental.do_not_convert(swap)
        strategy.run(run)
        try:
            yield
        finally:
            strategy.run(run)


def _name(variable: Any) -> str:
    return "ema_" + variable.path.replace("/", "_")
