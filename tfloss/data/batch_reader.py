"""Reads a data set's global batches under a strategy, and describes them. Host code.

With several workers, each reads the whole data set and takes the parts of its own replicas from
every batch. So all workers must see the same batches: seed every shuffle. A function of an
`InputContext` reads only this worker's batches, which are cut over this worker's replicas.

Each global batch is cut into one part for each replica, in order, of sizes that differ by at most
one: batches need not divide, and a replica may get no example at all. (TensorFlow cuts at the data
set's `batch` op instead, and cuts in another way if it doesn't find one.) A batch may be any nest
that `tf.data` yields. Where first dimensions differ, a `BatchLayout` says how to cut.
"""

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfloss import _upstream
from tfloss.data.batch_layout import ROWS_ARE_EXAMPLES, BatchLayout
from tfloss.data.distributed import (
    Data,
    as_dataset,
    check_tpu_spec,
    distribute,
    replica_spec,
    without_autotune,
)
from tfloss.data.identity import differences, structure
from tfloss.data.seekable import Seekable
from tfloss.distribute.strategy import worker_position
from tfloss.errors import DataError

_PREFETCHED = 2  # batches of a `Seekable` that are read ahead


class BatchReader:
    """Opens iterators over the batches of one data set under one strategy.

    Args:
      data: A `tf.data.Dataset` of global batches; a `Seekable`; or a function of a
        `tf.distribute.InputContext` that returns a data set of this worker's batches. The batches
        must have the same size on all workers. Where the data of one worker end earlier, it trains
        with no examples until those of all workers have ended.
      strategy: The strategy whose replicas get the parts of each batch.
      layout: Which tensors of a batch hold examples.

    Attributes:
      data: The argument.
      strategy: The argument.
      layout: The argument.
      dataset: The `tf.data.Dataset` of this process's batches, from the first one on.
      element_spec: The `tf.TypeSpec`s of one replica's batch.
      batch_size: Examples in a global batch, or None if unknown.
      batches_per_epoch: Batches in the data set, or None if it repeats or its length is unknown.
      endless: Whether the data set is known to never end.
      shared: Whether all workers read the same global batches.

    Raises:
      DataError: `data` is not a data set, is known to be empty, or its batches can't be divided
        over the replicas.
    """

    def __init__(
        self, data: Data, strategy: tf.distribute.Strategy, layout: BatchLayout = ROWS_ARE_EXAMPLES
    ):
        self.data, self.strategy, self.layout = data, strategy, layout
        self._worker, self._workers = worker_position(strategy)
        self.shared = self._workers == 1 or isinstance(data, tf.data.Dataset)
        self.dataset = self._dataset(0)
        layout.check_names(self.dataset.element_spec)
        size = layout.static_count(self.dataset.element_spec)
        self.batch_size = size and size * (1 if self.shared else self._workers)
        cardinality = int(self.dataset.cardinality())
        if cardinality == 0:
            raise DataError("The data set is empty: it has no batch at all.")
        self.endless = cardinality == tf.data.INFINITE_CARDINALITY
        self.batches_per_epoch = float(cardinality) if cardinality > 0 else None
        if isinstance(data, Seekable):
            self.batch_size, self.batches_per_epoch = data.batch_size, data.steps_per_epoch
        if isinstance(strategy, tf.distribute.TPUStrategy):
            check_tpu_spec(self.dataset.element_spec)
        self.element_spec = replica_spec(self.dataset.element_spec, strategy, layout)

    @property
    def seekable(self) -> bool:
        """Whether batches can be read from any position: `data` is a `Seekable`."""
        return isinstance(self.data, Seekable)

    def open(
        self,
        start: int = 0,
        watch: Callable[[Any], Any] | None = None,
    ) -> Any:
        """Opens an iterator of this process's batches. Host code.

        Args:
          start: Number of the first batch; only a `Seekable` can start later than at 0.
          watch: A function that wraps the data set before it is cut over replicas.

        Returns:
          An iterator; of PerReplica batches if there are several replicas.
        """
        if self.seekable:
            self.dataset = self._dataset(start)
        dataset = self.dataset if watch is None else watch(self.dataset)
        return iter(distribute(dataset, self.strategy, self.layout, per_worker=not self.shared))

    def identity(self) -> dict[str, Any]:
        """A fingerprint of what the batches depend on, as far as it is known. JSON values."""
        if isinstance(self.data, Seekable):
            return {"source": self.data.identity()}
        return {
            "batches": int(self.dataset.cardinality()),
            "batch_size": self.batch_size,
            "structure": structure(self.dataset.element_spec),
        }

    def likely_batch_size(self) -> int | None:
        """The examples in a batch, or what the last batching was given if some may have fewer."""
        return self.batch_size or _upstream.likely_batch_size(self.dataset)

    def batch_bytes(self) -> int:
        """Bytes of one replica's batch; a dimension of unknown length counts as 1."""
        leaves = tf.nest.flatten(self.element_spec)
        return sum(x.dtype.size * math.prod(d or 1 for d in x.shape) for x in leaves)

    def check_same_structure(self, other: "BatchReader") -> None:
        """Checks that this data set yields the same kinds of batches as another one.

        Raises:
          DataError: The structures differ. The message names each difference.
        """
        before, now = structure(other.element_spec), structure(self.element_spec)
        if changes := differences(before, now):
            raise DataError(
                "The batches have another structure than those of the last `train` call:\n"
                + "".join(f"  {key}: {changes[key]}\n" for key in sorted(changes))
                + "Use one Trainer for one kind of batch."
            )

    def _dataset(self, start: int) -> Any:
        """The batches of this process; those of a `Seekable` from number `start` on."""
        if isinstance(self.data, Seekable):
            found = self.data.dataset(
                start, shard=self._worker, shards=self._workers, layout=self.layout
            )
            found = found.prefetch(_PREFETCHED)  # the position counts what was trained on
        else:
            found = as_dataset(self.data, self.strategy, per_worker=not self.shared)
        return without_autotune(found)
