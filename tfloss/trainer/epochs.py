"""Training for a number of epochs: passes over finite data. Host code."""

import math
from fractions import Fraction
from typing import Any

import tensorflow as tf

from tfloss.data.adapted import adapted
from tfloss.data.batches import named_leaves
from tfloss.data.distributed import as_dataset
from tfloss.data.iterables import pass_length
from tfloss.data.seekable import Seekable
from tfloss.step.train_step import TrainStep
from tfloss.trainer.arguments import check_positive


class Epochs:
    """Turns the argument `epochs` of `Trainer.train` into steps, and repeats finite data.

    Data that `fit` takes become a data set. This and the repeated data set are made once for the
    same data, because a second call of `train` continues in the data only if they are the same
    object. (A tuple of the same arrays is the same.)

    Args:
      train_step: The step, which may take several batches.
      seed: Seed of the order of data that are shuffled here.
    """

    def __init__(self, train_step: TrainStep, seed: int | None = None):
        self._step, self._seed = train_step, seed
        self._given: list[Any] = []
        self._adapted: Any = None
        self._repeated: tuple[Any, Any] = (None, None)  # what was given, and it repeated

    def plan(
        self,
        data: Any,
        steps: int | None,
        epochs: Any,
        steps_per_epoch: float | None,
        batch_size: int | None = None,
    ) -> tuple[Any, int, float | None]:
        """Returns the data to train on, the step to reach, and the steps in an epoch.

        Args:
          data: What `Trainer.train` was given.
          steps: The step to reach, or None.
          epochs: Number of epochs to complete in all, or None. It may be a fraction.
          steps_per_epoch: Steps in an epoch, where the data don't tell.
          batch_size: Examples in a global batch, for arrays and tables.

        Raises:
          DataError: `batch_size` is missing, or the data can't be used.
          ValueError: Not exactly one of `steps` and `epochs` is given, `epochs` is not a positive
            number, or the length of an epoch is unknown.
        """
        if steps is not None and epochs is None:
            check_positive("steps", steps)
            data, steps_per_epoch = self.data_set(data, batch_size, steps_per_epoch)
            return data, steps, steps_per_epoch
        if steps is not None or epochs is None:
            both = "both" if epochs is not None else "neither"
            arrays = hasattr(steps, "shape") or isinstance(steps, list | tuple | dict)
            raise ValueError(
                f"train() needs steps=... or epochs=..., and got {both}."
                + " The second argument is `steps`. Labels belong to the data: train((x, y), "
                "epochs=3, batch_size=32)." * arrays
            )
        if isinstance(epochs, bool) or not isinstance(epochs, int | float | Fraction):
            raise ValueError(f"epochs must be a number, got {epochs!r}.")
        if not 0 < epochs < math.inf:
            raise ValueError(f"epochs must be positive and finite, got {epochs!r}.")
        data, steps_per_epoch = self.data_set(data, batch_size, steps_per_epoch)
        batches = _batches(data, self._step.strategy)
        if batches is None:  # no data set, which is refused by whoever reads it
            return data, 1, steps_per_epoch
        length = steps_per_epoch or (batches > 0 and batches / self._step.accumulate)
        if not length:
            endless = batches == tf.data.INFINITE_CARDINALITY
            why = "repeats for ever" if endless else "doesn't know its length"
            advice = "Leave out .repeat(), or give" if endless else "Give"
            raise ValueError(
                f"train(epochs={epochs}) needs the length of an epoch, but the data set {why}. "
                f"{advice} steps_per_epoch=..., or give steps=... instead of epochs."
            )
        steps = math.ceil(Fraction(str(epochs)) * Fraction(length).limit_denominator(10**6))
        return self._repeat(data, batches), steps, float(length)

    def data_set(
        self, data: Any, batch_size: int | None, steps_per_epoch: float | None = None
    ) -> tuple[Any, float | None]:
        """Returns the data set that the data are or become, and the steps in an epoch if known.

        Args:
          data: What `Trainer.train` was given.
          batch_size: Examples in a global batch, for arrays and tables.
          steps_per_epoch: Steps in an epoch, where the data don't tell.

        Raises:
          DataError: `batch_size` is missing, or the data can't be used.
        """
        length = pass_length(data)
        if steps_per_epoch is None and length:
            steps_per_epoch = length / self._step.accumulate
        given = [batch_size, *(part for leaf in named_leaves(data) for part in leaf)]
        same = len(given) == len(self._given) and all(
            a is b or (isinstance(a, str | int) and a == b)
            for a, b in zip(given, self._given, strict=True)
        )
        if not same:
            self._adapted = adapted(data, batch_size, training=True, seed=self._seed)
            self._given = given
        return self._adapted, steps_per_epoch

    def _repeat(self, data: Any, batches: float) -> Any:
        if isinstance(data, Seekable) or batches == tf.data.INFINITE_CARDINALITY:
            return data
        if self._repeated[0] is not data:
            self._repeated = data, _repeated(data)
        return self._repeated[1]


def _batches(data: Any, strategy: tf.distribute.Strategy) -> float | None:
    """Batches in a pass, a negative `tf.data` cardinality, or None for what is no data set."""
    if isinstance(data, Seekable):
        return data.steps_per_epoch
    if not isinstance(data, tf.data.Dataset) and not callable(data):
        return None
    return int(as_dataset(data, strategy, per_worker=True).cardinality())


def _repeated(data: Any) -> Any:
    if isinstance(data, tf.data.Dataset):
        return data.repeat()

    def repeated(context: tf.distribute.InputContext) -> Any:
        return data(context).repeat()

    return repeated
