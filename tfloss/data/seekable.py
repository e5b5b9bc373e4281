"""What input with random access has: batches that are a function of their position. Host code."""

import abc
import operator
from typing import Any, TypeAlias

import tensorflow as tf

from tfloss.data.batch_layout import ROWS_ARE_EXAMPLES, BatchLayout
from tfloss.errors import DataError

Dataset: TypeAlias = "tf.data.Dataset[Any]"


class Seekable(abc.ABC):
    """Batches that can be read from any position: `Source` and `BatchSource`.

    Attributes:
      batch_size: Number of examples in a global batch, or None if unknown.
      element_spec: Nest of `tf.TypeSpec`s of a batch.
      steps_per_epoch: Number of batches in an epoch; a fraction if batches cross its end.
      cardinality: Number of batches, or `tf.data.INFINITE_CARDINALITY`.
    """

    batch_size: int | None
    element_spec: Any
    steps_per_epoch: float
    cardinality: int

    @abc.abstractmethod
    def dataset(
        self,
        start: int = 0,
        *,
        shard: int = 0,
        shards: int = 1,
        layout: BatchLayout = ROWS_ARE_EXAMPLES,
    ) -> Dataset:
        """Returns the batches `start`, `start + 1`, ... It takes the same time for any `start`.

        Args:
          start: Index of the first batch. The data set is empty from `cardinality` on.
          shard: Index of the part of each batch to return.
          shards: Number of parts into which each batch is split, in order. Their sizes differ by at
            most one, and a part may be empty. Where a batch is made as a whole, each shard makes
            it and then takes its part.
          layout: Which tensors of a batch hold examples, where a batch is made as a whole.

        Raises:
          DataError: `start` is negative, or `shard` is not in 0 to `shards` - 1.
        """

    @abc.abstractmethod
    def identity(self) -> dict[str, Any]:
        """Returns what the order depends on, as JSON values. It is equal for equal orders."""

    @abc.abstractmethod
    def randomness(self) -> list[str]:
        """Lists what makes a batch depend on more than the seed and its position. Host code."""


def checked_integer(name: str, value: Any, *, minimum: int | None = None) -> int:
    """Returns an argument as an int.

    Args:
      name: Name of the argument.
      value: Its value.
      minimum: The smallest value that is allowed.

    Raises:
      DataError: It is not an integer, or is too small.
    """
    try:
        found = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        found = None
    if found is None or (minimum is not None and found < minimum):
        bound = "" if minimum is None else f" of at least {minimum}"
        raise DataError(f"{name} must be an integer{bound}; got {value!r}.")
    return found


def check_shard(shard: int, shards: int) -> None:
    """Checks the arguments of `Seekable.dataset`.

    Args:
      shard: Index of the part of each batch.
      shards: Number of parts.

    Raises:
      DataError: `shard` is not in 0 to `shards` - 1.
    """
    shards = checked_integer("shards", shards, minimum=1)
    if not 0 <= checked_integer("shard", shard) < shards:
        raise DataError(f"shard must be 0 to {shards - 1} with shards={shards}; got {shard}.")
