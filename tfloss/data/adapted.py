"""Takes the data that Keras's `fit` takes, as data that a trainer reads. Host code.

| data | in training | in evaluation |
| --- | --- | --- |
| arrays, tables, `datasets.Dataset` | a `Source`, shuffled in each epoch | one epoch in order |
| `PyDataset` | a `BatchSource`: its batches shuffled | one epoch in order |
| generator function, loader | read pass after pass | one pass |

A `Source` is resumed at its position. What can only be read in order is read past.
"""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfloss.data.batch_source import BatchSource
from tfloss.data.fit_arrays import fit_arrays
from tfloss.data.hugging_face import is_hugging_face, numpy_items
from tfloss.data.iterables import is_iterable, iterated
from tfloss.data.seekable import Seekable
from tfloss.data.source import Source
from tfloss.data.table_columns import column_arrays, is_table, not_collected
from tfloss.data.unusable_data import unusable_batch_size, unusable_data


def adapted(
    data: Any, batch_size: int | None = None, *, training: bool = False, seed: int | None = None
) -> Any:
    """Returns data that `fit` takes as a data set; everything else as it is.

    Args:
      data: Anything.
      batch_size: Number of examples in a global batch, for what has examples only.
      training: Whether to repeat the data without end, and to shuffle them as `fit` does: arrays
        and tables by example, a `PyDataset` by batch. Each epoch has an order of its own.
      seed: Integer seed of the order; None is 0.

    Returns:
      A `Seekable`, a `tf.data.Dataset`, or `data`.

    Raises:
      DataError: `batch_size` is missing, or is given beside data that have batches. Or the data
        can't be used; the message says why.
    """
    if not_collected(data):
        raise unusable_data(data)
    by_example = has_examples(data)
    if batch_size is not None and not by_example:
        batched = isinstance(data, tf.data.Dataset | Seekable | keras.utils.PyDataset)
        known = batched or is_iterable(data) or callable(data)
        raise unusable_batch_size(data) if known else unusable_data(data)
    order: Any = {"shuffle": training, "seed": seed or 0, "epochs": None if training else 1}
    if by_example:
        if batch_size is None:
            raise unusable_data(data)
        if is_hugging_face(data):
            examples: Any = numpy_items(data)
        else:
            examples = fit_arrays(column_arrays(data) if is_table(data) else data)
        return Source(examples, batch_size=batch_size, **order)
    if isinstance(data, keras.utils.PyDataset):
        return BatchSource(data, **order)
    if is_iterable(data):
        return iterated(data, training=training, seed=seed or 0)
    return data


def has_examples(data: Any) -> bool:
    """Returns whether data have examples, as arrays and tables do, and need a `batch_size`."""
    if isinstance(data, tf.data.Dataset | Seekable | keras.utils.PyDataset):
        return False
    arrays = isinstance(data, np.ndarray | tf.Tensor | tuple | Mapping)
    return arrays or is_table(data) or is_hugging_face(data) or hasattr(data, "__array__")
