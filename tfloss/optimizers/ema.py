"""Exponential moving averages of a model's weights, for evaluation and export.

    trainer = tfloss.Trainer(model, optimizer, ema=0.999)
    trainer.evaluate(test_set, metrics, ema=True)
    with trainer.averaged():
        tfloss.export(model, ...)

After each update `average = decay * average + (1 - decay) * weight` (Polyak and Juditsky,
1992). A skipped update and a micro-batch leave the averages as they are.
"""

import contextlib
import dataclasses
import warnings
from collections.abc import Collection, Generator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfloss.checkpoint import describe_nonfinite, named_variables, nonfinite_variables

PREFIX = "ema/"  # of the names in a checkpoint


@dataclasses.dataclass(frozen=True)
class Ema:
    """Options of an exponential moving average.

    Attributes:
      decay: Factor between 0 and 1; 0.999 averages over about the last 1,000 updates.
      trainable_only: Whether to average trainable variables only. Other variables
        (BatchNormalization's statistics, a frozen backbone) are then used as they are.
    """

    decay: float
    trainable_only: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for a decay that is not between 0 and 1."""
        if not 0.0 < self.decay < 1.0:
            raise ValueError(f"ema={self.decay!r}: the decay must be between 0 and 1.")


class Averages:
    """The averages of a model's floating-point weights; at first they are the weights.

    Variables that Keras overwrites with their gradient (of float8 layers) are used as they are.

    Create it in the strategy's scope, when the model is built.

    Args:
      ema: Decay, and which weights are averaged.
      model: A built model.
      names: The names of the averages, if a checkpoint says which weights were averaged.
    """

    def __init__(self, ema: Ema, model: keras.Model, names: Collection[str] | None = None):
        self._decay = ema.decay
        weights = model.trainable_variables if ema.trainable_only else model.weights
        self._weights = [
            v
            for v in weights
            # The scales of a float8 layer and the maxima they come from are no weights.
            if tf.as_dtype(v.dtype).is_floating and not v.overwrite_with_gradient
        ]
        paths = {id(v): name for name, v in named_variables(model).items()}
        self._names = [f"{PREFIX}{paths[id(v)]}" for v in self._weights]
        if names is not None:
            kept = [i for i, name in enumerate(self._names) if name in names]
            self._weights = [self._weights[i] for i in kept]
            self._names = [self._names[i] for i in kept]
        self._averages = [
            # No aggregation: each replica averages its own statistics.
            tf.Variable(tf.cast(v.value, _dtype(v)), trainable=False, name=_name(v))
            for v in self._weights
        ]

    def update(self, strategy: tf.distribute.Strategy, applied: Sequence[tf.Tensor] = ()) -> None:
        """Moves the averages, after an update of the weights. Cross-replica code, traced.

        Args:
          strategy: The strategy in whose scope the averages were created.
          applied: bool scalars: the averages move if any of them is true. Empty: in any case.
        """

        def replica() -> None:
            for average, weight in zip(self._averages, self._weights, strict=True):
                value = tf.cast(weight.value, average.dtype)
                average.assign_add((1.0 - self._decay) * (value - average))

        def move() -> tf.Tensor:
            strategy.run(tf.autograph.experimental.do_not_convert(replica))
            return tf.constant(True)

        if applied:
            tf.cond(tf.reduce_any(applied), move, lambda: tf.constant(False))
        else:
            move()

    def variables(self) -> dict[str, Any]:
        """The averages by their names in a checkpoint, `ema/<path of the weight>`."""
        return dict(zip(self._names, self._averages, strict=True))

    @contextlib.contextmanager
    def swapped_in(self, strategy: tf.distribute.Strategy) -> Generator[None]:
        """Swaps the averages into the model inside the `with` block. Host code.

        One more copy of the weights is kept on their devices in the block. A warning names the
        averages that are not finite.

        Args:
          strategy: The strategy in whose scope the averages were created.
        """
        if bad := nonfinite_variables(self.variables()):
            warnings.warn(f"The averages have {describe_nonfinite(bad)}", stacklevel=6)

        def swap() -> None:
            for average, weight in zip(self._averages, self._weights, strict=True):
                value = tf.identity(average)
                average.assign(tf.cast(weight.value, average.dtype))
                weight.value.assign(tf.cast(value, weight.dtype))

        run = tf.autograph.experimental.do_not_convert(swap)
        strategy.run(run)
        try:
            yield
        finally:
            strategy.run(run)


def _dtype(variable: Any) -> tf.DType:
    """float32, or a wider dtype that the variable has."""
    dtype = tf.as_dtype(variable.dtype)
    return dtype if dtype.size > tf.float32.size else tf.float32


def _name(variable: Any) -> str:
    return "ema_" + variable.path.replace("/", "_")
