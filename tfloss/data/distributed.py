"""A data set cut over the replicas of a strategy. Host code, but for what `tf.data` runs."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfloss.data import batches
from tfloss.data.source import Source
from tfloss.distribute.strategy import worker_position
from tfloss.errors import DataError

Data = tf.data.Dataset | Source | Callable[[tf.distribute.InputContext], tf.data.Dataset]


def as_dataset(
    data: Any, strategy: tf.distribute.Strategy, *, per_worker: bool = False
) -> tf.data.Dataset:
    """The `tf.data.Dataset` that `data` is or makes. Raises DataError if it is neither.

    Args:
      per_worker: a function is asked for this worker's share, not for all of the data.
    """
    if isinstance(data, Source):
        return data.dataset()
    if callable(data) and not isinstance(data, tf.data.Dataset):
        index, workers = worker_position(strategy) if per_worker else (0, 1)
        data = data(
            tf.distribute.InputContext(
                num_input_pipelines=workers,
                input_pipeline_id=index,
                num_replicas_in_sync=strategy.num_replicas_in_sync,
            )
        )
    if not isinstance(data, tf.data.Dataset):
        raise DataError(
            f"data must be a tf.data.Dataset of batches, a tfloss.data.Source, or a function of an "
            f"InputContext that returns a data set; got {type(data).__name__}. For arrays use "
            "tfloss.data.Source(arrays, batch_size=...)."
        )
    return data


def without_autotune(dataset: tf.data.Dataset) -> tf.data.Dataset:
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


def check_tpu_spec(spec: Any) -> None:
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
    dataset: tf.data.Dataset, strategy: tf.distribute.Strategy, *, per_worker: bool = False
) -> Any:
    """Yields each global batch, cut into one part for each replica, in order.

    The data set itself where there is one replica. Otherwise a distributed data set, whose
    iterator gives PerReplica parts; static shapes stay static where the batch divides.

    Args:
      per_worker: the batches are this worker's; they are cut over its own replicas.
    """
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return dataset
    index, workers = worker_position(strategy)
    here = replicas // workers
    first = 0 if per_worker else here * index
    replicas = here if per_worker else replicas
    each = _part_size(dataset.element_spec, replicas)
    # Known beforehand to never end, TensorFlow need not ask all workers at each step.
    endless = dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    if per_worker and not endless:
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
    size = static_batch_size(spec)
    return size // replicas if size is not None and size % replicas == 0 else None


def replica_spec(spec: Any, strategy: tf.distribute.Strategy) -> Any:
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


def static_batch_size(spec: Any) -> int | None:
    for one in tf.nest.flatten(spec):
        shape = getattr(one, "shape", None)
        if shape is not None and shape.rank:
            return shape[0]
    return None
