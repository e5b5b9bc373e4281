"""Divides the batches of a data set over the replicas of a strategy. Host code."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from tfloss import _upstream
from tfloss.data import batches
from tfloss.data.batch_division import check_divisible, part_of
from tfloss.data.batch_layout import ROWS_ARE_EXAMPLES, BatchLayout
from tfloss.data.seekable import Seekable
from tfloss.data.unusable_data import check_input_function, unusable_data
from tfloss.distribute.strategy import worker_position
from tfloss.errors import DataError

Dataset: TypeAlias = "tf.data.Dataset[Any]"
# What `fit` accepts: arrays and tables, a `PyDataset`, and what is read in order.
FitData: TypeAlias = (
    np.ndarray
    | tf.Tensor
    | tuple[Any, ...]
    | Mapping[str, Any]
    | keras.utils.PyDataset
    | Callable[[], Iterator[Any]]
    | Iterable[Any]
)
# What `Trainer.train` and `Trainer.evaluate` accept.
Data: TypeAlias = "Dataset | Seekable | Callable[[tf.distribute.InputContext], Dataset] | FitData"


def as_dataset(data: Any, strategy: tf.distribute.Strategy, *, per_worker: bool = False) -> Dataset:
    """Returns the `tf.data.Dataset` that `data` is or creates.

    Args:
      data: Data set of batches, `Seekable`, or function of a `tf.distribute.InputContext` that
        returns a data set.
      strategy: Strategy that the input context describes.
      per_worker: Whether a function is asked for this worker's batches only, not for all batches.

    Raises:
      DataError: `data` is nothing of these.
    """
    if isinstance(data, Seekable):
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
    dataset: Dataset,
    strategy: tf.distribute.Strategy,
    layout: BatchLayout = ROWS_ARE_EXAMPLES,
    *,
    per_worker: bool = False,
) -> Any:
    """Divides each global batch into one part for each replica, in order.

    Args:
      dataset: Data set of batches.
      strategy: Strategy whose replicas take the parts.
      layout: Which tensors of a batch hold examples.
      per_worker: Whether the batches are this worker's, to be divided over its own replicas.

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
    # If the data are known to never end, TensorFlow needn't ask all workers at each step.
    endless = dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    static = endless or not per_worker  # else a worker's data may have ended before

    def parts(_: tf.distribute.InputContext) -> Dataset:

        def split(*elements: Any) -> Dataset:
            batch = _packed(dataset.element_spec, elements)

            def part(index: tf.Tensor) -> Any:
                index = tf.cast(index, tf.int32)
                return part_of(layout, batch, replicas, index, static=static)

            return tf.data.Dataset.range(first, first + here).map(_plain(part))

        found = dataset.flat_map(_plain(split))
        if endless:
            found = found.apply(
                tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
            )
        return found

    # All workers read the same batches. If one of them has fewer, it must fail.
    alike = workers > 1 and not per_worker
    with _upstream.without_partial_batches(strategy) if alike else contextlib.nullcontext():
        return strategy.distribute_datasets_from_function(parts)


def replica_spec(
    spec: Any,
    strategy: tf.distribute.Strategy,
    layout: BatchLayout = ROWS_ARE_EXAMPLES,
    *,
    with_count: bool = False,
) -> Any:
    """Returns the spec of one replica's part of a batch, with any number of examples.

    The number is left open because a model is built outside of the replicas, where
    `cross_replica_concat` adds no rows of other replicas.

    Args:
      spec: Nest of `tf.TypeSpec`s of a global batch.
      strategy: Strategy whose replicas take the parts.
      layout: Which tensors of a batch hold examples.
      with_count: Whether to set the number of examples, where the replicas divide it.

    Raises:
      DataError: The specs tell that such batches can't be divided.
    """
    replicas = strategy.num_replicas_in_sync
    check_divisible(layout, spec, replicas)
    if replicas == 1:
        return spec
    found: list[Any] = []

    def trace(batch: Any, index: tf.Tensor) -> None:
        found[:] = tf.nest.flatten(part_of(layout, batch, replicas, index, static=with_count))

    function = tf.function(trace, autograph=False)
    function.get_concrete_function(_without_names(spec), tf.TensorSpec([], tf.int32))
    return tf.nest.pack_sequence_as(
        spec, [_without_names(tf.type_spec_from_value(one)) for one in found]
    )


def _packed(spec: Any, elements: tuple[Any, ...]) -> Any:
    # tf.data passes the items of a tuple as separate arguments.
    return tf.nest.pack_sequence_as(spec, tf.nest.flatten(elements))


def _without_names(spec: Any) -> Any:
    """A tensor's spec has the name of its op, and names of arguments must differ."""

    def plain(one: Any) -> Any:
        return tf.TensorSpec(one.shape, one.dtype) if type(one) is tf.TensorSpec else one

    return tf.nest.map_structure(plain, spec)


_plain = tf.autograph.experimental.do_not_convert
