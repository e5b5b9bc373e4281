"""A data set as the trainer needs it: distributed over replicas, its batches described.

With several workers each reads the whole data set, and takes its own replicas' parts of every
batch. So all must see the same batches: seed what shuffles. A function of an `InputContext` reads
what is this worker's only; its batches are cut over this worker's replicas.

Each global batch is cut into one part a replica, in order, of sizes that differ by at most one:
batches need not divide, and a replica may get no example at all. (TensorFlow's own way cuts
the data set's `batch` op, and cuts otherwise if it doesn't find one.) Host code. Nothing is known
of what is in a batch: it is any nest that `tf.data` yields.
"""

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfloss import batches
from tfloss.agreement import Agreement
from tfloss.blocks import Blocks
from tfloss.data.alike import FirstBatch
from tfloss.distribution import worker_position
from tfloss.errors import DataError

Data = tf.data.Dataset | Callable[[tf.distribute.InputContext], tf.data.Dataset]


class Feed:
    """One data set under one strategy, and the position in it.

    Args:
      data: a data set of global batches, or `input_fn(tf.distribute.InputContext)` that
        makes one of this worker's batches. They are to be of the same size on all workers; where
        the data of one ends earlier, it trains on with no examples until that of all has ended.
      strategy: splits each batch over its replicas.

    Attributes:
      element_spec: of one replica's batch.
      batch_size: examples in a global batch, or None if that is not known beforehand.
      iterator: at the next batch.
      blocks: what takes the iterator's batches in blocks, or None.
      used: whether a batch was taken since the last (re)start.
      steps_per_epoch: batches in the data set, or None if it repeats or doesn't say.

    Raises:
      DataError: not a data set, or an empty one as far as it knows itself.
    """

    def __init__(self, data: Data, strategy: tf.distribute.Strategy):
        self.data = data
        self.strategy = strategy
        workers = worker_position(strategy)[1]
        own = workers > 1 and not isinstance(data, tf.data.Dataset)
        self.dataset = without_autotuner(as_dataset(data, strategy, own_share=own))
        size = _leading_dimension(self.dataset.element_spec)
        self.batch_size = size and size * (workers if own else 1)
        cardinality = int(self.dataset.cardinality())
        if cardinality == 0:
            raise DataError("The data set is empty: it has no batch at all.")
        self.steps_per_epoch = float(cardinality) if cardinality > 0 else None
        if isinstance(strategy, tf.distribute.TPUStrategy):
            check_for_tpu(self.dataset.element_spec)
        self._first = FirstBatch() if workers > 1 and not own else None
        watched = self.dataset if self._first is None else self._first.seen(self.dataset)
        self._distributed = distribute(watched, strategy, own_share=own)
        self.element_spec = _part_spec(self.dataset.element_spec, strategy)
        self.restart()

    def restart(self) -> None:
        """Goes back to the first batch."""
        self.iterator = iter(self._distributed)
        self.blocks: Blocks | None = None
        self.used = False

    def stacked(self, per_step: int) -> Blocks:
        """The rest of the data in blocks. Raises StopIteration if there is none."""
        if self.blocks is None:
            endless = self.dataset.cardinality() == tf.data.INFINITE_CARDINALITY
            self.blocks = Blocks(self.iterator, per_step, endless=bool(endless))
        return self.blocks

    def batch_bytes(self) -> int:
        """The size of a batch; one of unknown length counts as one example."""
        leaves = tf.nest.flatten(self.element_spec)
        return sum(x.dtype.size * math.prod(d or 1 for d in x.shape) for x in leaves)

    def after_call(self, agreement: Agreement) -> None:
        """Some batches were taken. Warns if several workers' differ."""
        self.used = True
        if self._first is not None:
            self._first.compare(agreement)

    def after_end(self, done: int, step: int, steps: int) -> None:
        """Starts anew if an earlier `train` call took the last batch; otherwise raises.

        Args:
          done: batches taken by this call of `train`.
          step: updates completed.
          steps: updates asked for.

        Raises:
          DataError: it is empty, or it ended too early and after how many batches.
        """
        if done:
            raise DataError(
                f"The data set ended after {done} batches, at step {step} of {steps}. Call "
                ".repeat() on it, or ask for fewer steps."
            ) from None
        if not self.used:
            raise DataError("The data set is empty: it yielded no batch.") from None
        self.restart()

    def check_same_structure(self, other: "Feed") -> None:
        """Raises DataError, naming what differs, if `other` yields other kinds of batches."""
        before, now = _described(other.element_spec), _described(self.element_spec)
        if before != now:
            lines = [
                f"  {k}: {before.get(k, 'absent')} -> {now.get(k, 'absent')}"
                for k in sorted({*before, *now})
                if before.get(k) != now.get(k)
            ]
            raise DataError(
                "The batches have another structure than those of the last `train` call:\n"
                + "\n".join(lines)
                + "\nUse one Trainer for one kind of batch."
            )


def as_dataset(
    data: Any, strategy: tf.distribute.Strategy, *, own_share: bool = False
) -> tf.data.Dataset:
    """The `tf.data.Dataset` that `data` is or makes. Raises DataError if it is neither.

    Args:
      own_share: a function is asked for this worker's share, not for all of the data.
    """
    if callable(data) and not isinstance(data, tf.data.Dataset):
        index, workers = worker_position(strategy) if own_share else (0, 1)
        data = data(
            tf.distribute.InputContext(
                num_input_pipelines=workers,
                input_pipeline_id=index,
                num_replicas_in_sync=strategy.num_replicas_in_sync,
            )
        )
    if not isinstance(data, tf.data.Dataset):
        raise DataError(
            f"data must be a tf.data.Dataset of batches, or a function of an InputContext that "
            f"returns one; got {type(data).__name__}. For arrays use "
            "tf.data.Dataset.from_tensor_slices(...).batch(...)."
        )
    return data


def without_autotuner(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The same data set, unless its user has switched the autotuner on.

    Closing an iterator waits for the next wake-up of the autotuner's thread, whose period grows up
    to a minute: so long would the end of `train`, and of the process, be delayed. Without it,
    `AUTOTUNE` means as many parallel calls as there are cores.
    """
    if dataset.options().autotune.enabled is not None:
        return dataset
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def check_for_tpu(spec: Any) -> None:
    """Raises DataError, naming them, for tensors that a TPU can't be given.

    They must be dense, not strings, and of static shapes: a TPU's program is compiled for them.
    """
    bad = []
    for path, one in batches.leaves(spec, "batch"):
        if not isinstance(one, tf.TensorSpec):
            bad.append(f"{path} is a {type(one).__name__.removesuffix('Spec')}")
        elif one.dtype == tf.string:
            bad.append(f"{path} is of strings")
        elif not one.shape.is_fully_defined():
            bad.append(f"{path} has shape {one.shape}")
    if bad:
        raise DataError(
            "A TPU needs dense numbers of static shapes: "
            + ", ".join(bad)
            + ". Batch with drop_remainder=True, pad what varies, and leave strings out."
        )


def distribute(
    dataset: tf.data.Dataset, strategy: tf.distribute.Strategy, *, own_share: bool = False
) -> Any:
    """Yields each global batch, cut into one part for each replica, in order.

    The data set itself where there is one replica. Otherwise a distributed data set, whose
    iterator gives PerReplica parts; static shapes stay static where the batch divides.

    Args:
      own_share: the batches are this worker's; they are cut over its own replicas.
    """
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return dataset
    index, workers = worker_position(strategy)
    here = replicas // workers
    first = 0 if own_share else here * index
    replicas = here if own_share else replicas
    each = _part_size(dataset.element_spec, replicas)
    # Known beforehand to never end, TensorFlow need not ask all workers at each step.
    endless = dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    if own_share and not endless:
        each = None  # there may be none

    def parts(_: tf.distribute.InputContext) -> tf.data.Dataset:

        def cut(*elements: Any) -> tf.data.Dataset:
            # tf.data hands the parts of a tuple over one by one.
            spec = dataset.element_spec
            batch = tf.nest.pack_sequence_as(spec, tf.nest.flatten(elements))
            number = batches.count(batch)
            if number is None:  # only scalars: for everybody
                return tf.data.Dataset.from_tensors(batch).repeat(here)

            def one(index: tf.Tensor) -> Any:
                start, stop = batches.bounds(number, replicas, tf.cast(index, tf.int32))
                found = batches.part(batch, start, stop)
                return found if each is None else batches.with_count(found, each)

            return tf.data.Dataset.range(first, first + here).map(_plain(one))

        found = dataset.flat_map(_plain(cut))
        if endless:
            found = found.apply(
                tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
            )
        return found

    return strategy.distribute_datasets_from_function(parts)


def _part_size(spec: Any, replicas: int) -> int | None:
    """Examples of each replica, if that is known and the same for all."""
    size = _leading_dimension(spec)
    return size // replicas if size is not None and size % replicas == 0 else None


def _part_spec(spec: Any, strategy: tf.distribute.Strategy) -> Any:
    """The spec of one replica's part of a batch, of any number of examples.

    The number is left open because a model is built outside of the replicas, where
    `cross_replica_concat` has nobody else's rows to add.
    """
    if strategy.num_replicas_in_sync == 1:
        return spec

    def cut(one: Any) -> Any:
        if not one.shape.rank:
            return one
        rest = one.shape[1:]
        if isinstance(one, tf.RaggedTensorSpec):
            shape = [None, *rest]
            ragged: Any = one
            return tf.RaggedTensorSpec(
                shape, ragged.dtype, ragged.ragged_rank, ragged.row_splits_dtype
            )
        if isinstance(one, tf.SparseTensorSpec):
            return tf.SparseTensorSpec([None, *rest], one.dtype)
        return tf.TensorSpec([None, *rest], one.dtype, one.name)

    return tf.nest.map_structure(cut, spec)


_plain = tf.autograph.experimental.do_not_convert


def _leading_dimension(spec: Any) -> int | None:
    for one in tf.nest.flatten(spec):
        shape = getattr(one, "shape", None)
        if shape is not None and shape.rank:
            return shape[0]
    return None


def _described(spec: Any) -> dict[str, str]:
    """`{path in the nest: dtype and rank}`, which must not change between data sets."""
    paths = tf.nest.map_structure(lambda s: s, spec)
    flat = batches.leaves(paths, "batch")
    return {
        path: f"{getattr(s, 'dtype', s).name if hasattr(s, 'dtype') else s} of rank "
        f"{s.shape.rank if hasattr(s, 'shape') else '?'}"
        for path, s in flat
    }
