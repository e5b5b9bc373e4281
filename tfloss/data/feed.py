"""A data set as the trainer needs it: distributed over replicas, its batches described.

Host code. Nothing is known of what is in a batch: it is any nest that `tf.data` yields.
"""

import warnings
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfloss.errors import DataError

Data = tf.data.Dataset | Callable[[tf.distribute.InputContext], tf.data.Dataset]


class Feed:
    """One data set under one strategy, and the position in it.

    Args:
      data: a data set of global batches, or `input_fn(tf.distribute.InputContext)` that
        makes one of this worker's batches.
      strategy: splits each batch over its replicas.

    Attributes:
      element_spec: of one replica's batch; the first dimension is left open when a batch is
        split.
      batch_size: examples in a global batch, or None if that is not known beforehand.
      iterator: at the next batch.
      used: whether a batch was taken since the last (re)start.
      steps_per_epoch: batches in the data set, or None if it repeats or doesn't say.

    Raises:
      DataError: not a data set, or an empty one as far as it knows itself.
    """

    def __init__(self, data: Data, strategy: tf.distribute.Strategy):
        self.data = data
        self.strategy = strategy
        self.dataset = as_dataset(data, strategy)
        replicas = strategy.num_replicas_in_sync
        self.batch_size = _leading_dimension(self.dataset.element_spec)
        cardinality = int(self.dataset.cardinality())
        if cardinality == 0:
            raise DataError("The data set is empty: it has no batch at all.")
        self.steps_per_epoch = float(cardinality) if cardinality > 0 else None
        self.element_spec = self.dataset.element_spec
        if replicas > 1:
            if self.batch_size is None or self.batch_size % replicas:
                size = "some number of" if self.batch_size is None else self.batch_size
                warnings.warn(
                    f"Batches of {size} examples may not divide evenly among {replicas} replicas. "
                    "Each replica counts the same, so examples would count differently. Batch "
                    f"with a multiple of {replicas} and drop_remainder=True.",
                    stacklevel=3,
                )
            self.element_spec = tf.nest.map_structure(_open_batch, self.element_spec)
            self._distributed = strategy.experimental_distribute_dataset(self.dataset)
        else:
            self._distributed = self.dataset
        self.restart()

    def restart(self) -> None:
        """Goes back to the first batch."""
        self.iterator = iter(self._distributed)
        self.used = False

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


def as_dataset(data: Any, strategy: tf.distribute.Strategy) -> tf.data.Dataset:
    """The `tf.data.Dataset` that `data` is or makes. Raises DataError if it is neither."""
    if callable(data) and not isinstance(data, tf.data.Dataset):
        data = data(
            tf.distribute.InputContext(
                num_input_pipelines=1,
                input_pipeline_id=0,
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


def leading_size(batch: Any) -> int:
    """The number of examples in a batch on the host: its first dimension.

    Raises DataError if its tensors disagree or none has a first dimension.
    """
    sizes = {_size(leaf) for leaf in tf.nest.flatten(batch)} - {None}
    if len(sizes) != 1:
        found = ", ".join(map(str, sorted(s for s in sizes if s is not None))) or "none"
        raise DataError(
            "Can't tell how many examples a batch has: the first dimensions of its tensors "
            f"are {found}. Every tensor of a batch must have the batch as first dimension, or "
            "be a scalar."
        )
    return sizes.pop()  # type: ignore[return-value]


def split(batch: Any, parts: int) -> list[Any]:
    """Splits a batch on the host into `parts` of nearly equal size, in order.

    Scalars go to every part. A batch of fewer than `parts` examples is not split.
    """
    size = leading_size(batch)
    parts = parts if size >= parts else 1
    bounds = [size * i // parts for i in range(parts + 1)]
    return [
        tf.nest.map_structure(lambda x, a=a, b=b: x[a:b] if _size(x) is not None else x, batch)
        for a, b in zip(bounds, bounds[1:], strict=False)
    ]


def _size(leaf: Any) -> int | None:
    if isinstance(leaf, tf.RaggedTensor):
        return int(leaf.nrows())
    return None if leaf.shape.rank == 0 else int(leaf.shape[0])


def _leading_dimension(spec: Any) -> int | None:
    for one in tf.nest.flatten(spec):
        shape = getattr(one, "shape", None)
        if shape is not None and shape.rank:
            return shape[0]
    return None


def _open_batch(spec: Any) -> Any:
    if isinstance(spec, tf.TensorSpec) and spec.shape.rank:
        return tf.TensorSpec([None, *spec.shape[1:]], spec.dtype, spec.name)
    return spec


def _described(spec: Any) -> dict[str, str]:
    """`{path in the nest: dtype and rank}`, which must not change between data sets."""
    paths = tf.nest.map_structure(lambda s: s, spec)
    flat = _flatten_with_path(paths)
    return {
        path: f"{getattr(s, 'dtype', s).name if hasattr(s, 'dtype') else s} of rank "
        f"{s.shape.rank if hasattr(s, 'shape') else '?'}"
        for path, s in flat
    }


def _flatten_with_path(nest: Any, path: str = "batch") -> list[tuple[str, Any]]:
    if isinstance(nest, dict):
        return [x for k, v in nest.items() for x in _flatten_with_path(v, f"{path}[{k!r}]")]
    if isinstance(nest, tuple | list):
        return [x for i, v in enumerate(nest) for x in _flatten_with_path(v, f"{path}[{i}]")]
    return [(path, nest)]
