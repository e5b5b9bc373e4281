"""Splits the batches of a data set over the replicas of a strategy. Host code."""

from collections.abc import Callable
from typing import Any, TypeAlias

import tensorflow as tf

from tfloss.data import batches
from tfloss.data.source import Source
from tfloss.data.unusable_data import check_input_function, unusable_data
from tfloss.distribute.strategy import worker_position
from tfloss.errors import DataError

Dataset: TypeAlias = "tf.data.Dataset[Any]"
# What `Trainer.train` and `Evaluator` accept.
Data: TypeAlias = "Dataset | Source | Callable[[tf.distribute.InputContext], Dataset]"


def as_dataset(data: Any, strategy: tf.distribute.Strategy, *, per_worker: bool = False) -> Dataset:
    """Returns the `tf.data.Dataset` that `data` is or creates.

    Args:
      data: Data set of batches, `Source`, or function of a `tf.distribute.InputContext` that
        returns a data set.
      strategy: Strategy that the input context describes.
      per_worker: Whether a function is asked for this worker's batches only, not for all batches.

    Raises:
      DataError: `data` is nothing of these.
    """
    if isinstance(data, Source):
        return data.dataset()
    if callable(data) and not isinstance(data, tf.data.Dataset):
        check_input_function(data)
        index, workers = worker_position(strategy) if per_worker else (0, 1)
        data = data(
            tf.distribute.InputContext(
                num_input_pipelines=workers,
                input_pipeline_id=index,
                num_replicas_in_sync=strategy.num_replicas_in_sync,
            )
        )
    if not isinstance(data, tf.data.Dataset):
        raise unusable_data(data)
    return data


def without_autotune(dataset: Dataset) -> Dataset:
    """Returns the data set with the autotuner off, unless its user has set the option.

    Closing an iterator waits until the autotuner's thread wakes up, which may take a minute. That
    would delay the end of `train` and of the process. Without the autotuner, `AUTOTUNE` means as
    many parallel calls as there are cores.
    """
    if dataset.options().autotune.enabled is not None:
        return dataset
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def check_tpu_spec(spec: Any) -> None:
    """Checks that batches fit a TPU, whose programs are compiled for static shapes.

    Args:
      spec: Nest of `tf.TypeSpec`s of a batch.

    Raises:
      DataError: Tensors are ragged, sparse, strings or of unknown shape. The message names them.
    """
    bad = []
    for path, one in batches.named_leaves(spec, "batch"):
        if not isinstance(one, tf.TensorSpec):
            bad.append(f"{path} is a {type(one).__name__.removesuffix('Spec')}")
        elif one.dtype == tf.string:
            bad.append(f"{path} holds strings")
        elif not one.shape.is_fully_defined():
            bad.append(f"{path} has shape {one.shape}")
    if bad:
        raise DataError(
            "A TPU needs dense numeric tensors of static shapes, but "
            + ", ".join(bad)
            + ". Batch with drop_remainder=True, pad dimensions that vary, and remove strings."
        )


def distribute(
    dataset: Dataset, strategy: tf.distribute.Strategy, *, per_worker: bool = False
) -> Any:
    """Splits each global batch into one part for each replica, in order.

    Args:
      dataset: Data set of batches.
      strategy: Strategy whose replicas take the parts.
      per_worker: Whether the batches are this worker's, to be split over its own replicas.

    Returns:
      The data set itself for one replica. Otherwise a distributed data set of `PerReplica` parts,
      with static shapes if the number of replicas divides the batch size.
    """
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return dataset
    index, workers = worker_position(strategy)
    here = replicas // workers
    first = 0 if per_worker else here * index
    replicas = here if per_worker else replicas
    each = _part_size(dataset.element_spec, replicas)
    # If the data are known to never end, TensorFlow needn't ask all workers at each step.
    endless = dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    if per_worker and not endless:
        each = None  # a worker's data may have ended before

    def parts(_: tf.distribute.InputContext) -> Dataset:

        def split(*elements: Any) -> Dataset:
            # tf.data passes the items of a tuple as separate arguments.
            spec = dataset.element_spec
            batch = tf.nest.pack_sequence_as(spec, tf.nest.flatten(elements))
            number = batches.count(batch)
            if number is None:  # only scalars, which all replicas get
                return tf.data.Dataset.from_tensors(batch).repeat(here)

            def part(index: tf.Tensor) -> Any:
                start, stop = batches.split_bounds(number, replicas, tf.cast(index, tf.int32))
                found = batches.slice_examples(batch, start, stop)
                return found if each is None else batches.with_static_count(found, each)

            return tf.data.Dataset.range(first, first + here).map(_plain(part))

        found = dataset.flat_map(_plain(split))
        if endless:
            found = found.apply(
                tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
            )
        return found

    return strategy.distribute_datasets_from_function(parts)


def _part_size(spec: Any, replicas: int) -> int | None:
    """The number of examples on each replica, or None if it is unknown or differs."""
    size = static_batch_size(spec)
    return size // replicas if size is not None and size % replicas == 0 else None


def replica_spec(spec: Any, strategy: tf.distribute.Strategy, *, with_count: bool = False) -> Any:
    """Returns the spec of one replica's part of a batch, with any number of examples.

    The number is left open because a model is built outside of the replicas, where
    `cross_replica_concat` adds no rows of other replicas.

    Args:
      spec: Nest of `tf.TypeSpec`s of a global batch.
      strategy: Strategy whose replicas take the parts.
      with_count: Whether to set the number of examples, where the replicas divide it.
    """
    if strategy.num_replicas_in_sync == 1:
        return spec
    count = _part_size(spec, strategy.num_replicas_in_sync) if with_count else None

    def open_count(one: Any) -> Any:
        if not one.shape.rank:
            return one
        rest = one.shape[1:]
        if isinstance(one, tf.RaggedTensorSpec):
            shape = [count, *rest]
            ragged: Any = one
            return tf.RaggedTensorSpec(
                shape, ragged.dtype, ragged.ragged_rank, ragged.row_splits_dtype
            )
        if isinstance(one, tf.SparseTensorSpec):
            return tf.SparseTensorSpec([count, *rest], one.dtype)
        return tf.TensorSpec([count, *rest], one.dtype, one.name)

    return tf.nest.map_structure(open_count, spec)


_plain = tf.autograph.experimental.do_not_convert


def static_batch_size(spec: Any) -> int | None:
    """Returns the first dimension of the first tensor that has one; None if it is unknown."""
    for one in tf.nest.flatten(spec):
        shape = getattr(one, "shape", None)
        if shape is not None and shape.rank:
            return shape[0]
    return None
