"""Says why something can't be used as a data set, and what to give instead. Host code."""

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from tfloss.data.hugging_face import is_hugging_face
from tfloss.data.table_columns import column_names, is_table, not_collected
from tfloss.errors import DataError


def unusable_data(data: Any) -> DataError:
    """Returns the error for something that is no data set.

    Args:
      data: What was given instead of a `tf.data.Dataset`, a `Source` or a function.
    """
    what = type(data).__name__
    if call := not_collected(data):
        return DataError(
            f"A {what} is a query that has no rows yet. Give its result: data.{call}, beside "
            "batch_size=..."
        )
    if is_table(data):
        cure = (
            f"A {what} has examples, not batches. Say beside them how many make a "
            f"batch: batch_size=32. Or use {_table(data)}."
        )
    elif is_hugging_face(data):
        cure = (
            "It has examples, not batches. Say beside it how many make a batch: batch_size=32. Or "
            "use tfloss.data.Source(data.with_format('numpy'), batch_size=...)."
        )
    elif isinstance(data, np.ndarray | tuple | Mapping) or hasattr(data, "__array__"):
        cure = (
            "Arrays have examples, not batches. Say beside them how many make a batch: "
            "batch_size=32. Or use tfloss.data.Source(arrays, batch_size=...)."
        )
    elif isinstance(data, list):
        cure = (
            "Arrays belong in a tuple, (x, y), or in a dict. A list of batches needs a function: "
            "def batches(): yield from data."
        )
    elif isinstance(data, str | os.PathLike):
        cure = (
            "A path is read by TensorFlow or Keras: tf.data.TFRecordDataset(path), "
            "keras.utils.image_dataset_from_directory(path)."
        )
    elif hasattr(data, "dataset") and hasattr(data, "batch_size"):
        cure = (
            "It looks like a loader of batches. Use tfloss.data.Source(loader.dataset, "
            "batch_size=...), which resumes at any batch; or a generator function that yields "
            "its batches."
        )
    elif hasattr(data, "with_format") and hasattr(data, "batch"):  # datasets.IterableDataset
        cure = (
            "It has no random access. Give a generator function: "
            "def batches(): yield from data.with_format('numpy').batch(32)"
        )
    elif isinstance(data, Iterator):
        cure = (
            "An iterator or running generator can be read only once, so that no run could resume. "
            "Give the generator function itself, without calling it."
        )
    else:
        cure = "For arrays, use tfloss.data.Source(arrays, batch_size=...)."
    return DataError(
        "data must be a tf.data.Dataset of batches, a tfloss.data.Source; arrays, a table or a "
        "datasets.Dataset with batch_size=...; a keras.utils.PyDataset, a generator function, a "
        "torch DataLoader, or a function of an InputContext that returns a data set; got "
        f"{what}. {cure}"
    )


def unusable_batch_size(data: Any) -> DataError:
    """Returns the error for a batch size beside data that have batches.

    Args:
      data: The data.
    """
    what = getattr(data, "__name__", type(data).__name__)
    return DataError(
        f"batch_size=... is for arrays and tables, but {what} has batches already. Leave it out."
    )


def epoch_hooks(data: Any) -> DataError | None:
    """Returns the error for a `PyDataset` that changes between epochs, or None.

    A run that resumes in the middle could not bring such data to where they were.

    Args:
      data: Any object.
    """
    if not isinstance(data, keras.utils.PyDataset):
        return None
    base: Any = keras.utils.PyDataset
    own = [
        name
        for name in ("on_epoch_begin", "on_epoch_end")
        if getattr(type(data), name) is not getattr(base, name)
    ]
    if not own:
        return None
    name = type(data).__name__
    return DataError(
        f"{name} changes between epochs, in {' and '.join(own)}(), so no run could resume in the "
        f"middle with the same batches. Remove {' and '.join(own)}: training shuffles the batches "
        "of a PyDataset in each epoch. To shuffle the examples, use tfloss.data.Source with "
        "an object whose __getitem__ returns one example."
    )


def check_input_function(function: Callable[..., Any]) -> None:
    """Checks that a function can be called with a `tf.distribute.InputContext`.

    Args:
      function: What was given as data.

    Raises:
      DataError: It takes no argument. The message names it.
    """
    name = getattr(function, "__name__", type(function).__name__)
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        raise DataError(
            f"A data function is called with a tf.distribute.InputContext, but {name} doesn't take "
            f"one argument. Write `def {name}(context): ...`, or pass the data set that it returns."
        ) from None
    except ValueError:  # a built-in function without a signature
        return


def unusable_array(path: str, data: Any, error: Exception) -> DataError:
    """Returns the error for something in a `Source` that can't be converted to a tensor.

    Args:
      path: Where it is in the nest, such as `['x'][0]`.
      data: The object.
      error: Why it can't be converted.
    """
    where = f"examples{path}"
    if is_table(data):
        mixed = ", ".join(f"{name!r} is {dtype}" for name, dtype in _dtypes(data).items())
        reason = f"its columns have several types: {mixed}. Give each column: {_table(data)}"
    elif data is None:
        reason = "leave it out"
    else:
        text = str(error).rstrip(".")
        reason = f"{text}. An array needs one numeric type, or strings without missing values"
    return DataError(f"{where}, of type {type(data).__name__}, is not an array: {reason}.")


def _table(data: Any) -> str:
    names = column_names(data)
    shown = ", ".join(f"{name!r}: df[{name!r}].to_numpy()" for name in names[:2])
    more = ", ..." if len(names) > 2 else ""
    return f"tfloss.data.Source({{{shown}{more}}}, batch_size=...)"


def _dtypes(data: Any) -> dict[str, Any]:
    kinds = data.dtypes if hasattr(data, "dtypes") else data.schema.types  # of Arrow
    kinds = dict(kinds).values() if hasattr(kinds, "items") else kinds
    return dict(zip(column_names(data), kinds, strict=True))
