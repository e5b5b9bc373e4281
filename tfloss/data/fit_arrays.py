"""Arrays as `fit` takes them: what Keras does to them before a model sees them. Host code."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tfloss.data.item_structure import map_leaves
from tfloss.data.unusable_data import is_table


def fit_arrays(nest: Any) -> Any:
    """Returns a nest of numpy arrays as `fit` makes it.

    A list of arrays is a tuple, floats have Keras's `floatx`, and a table is a matrix. A leaf that
    is no array, such as None, stays as it is.

    Args:
      nest: Arrays, tensors of TensorFlow or torch, tables and columns, in dicts, tuples and lists.
    """
    return map_leaves(_without_lists(nest), _fit_array)


def columns(table: Any) -> dict[str, Any]:
    """Returns the columns of a data frame by name.

    Args:
      table: A data frame, as of pandas or polars.
    """
    return {str(name): table[name] for name in table.columns}


def _without_lists(nest: Any) -> Any:
    if isinstance(nest, list) and nest and all(map(_is_array, nest)):
        nest = tuple(nest)
    if isinstance(nest, Mapping):
        return {key: _without_lists(one) for key, one in nest.items()}
    if isinstance(nest, tuple):
        found = [_without_lists(one) for one in nest]
        return type(nest)(*found) if hasattr(nest, "_fields") else tuple(found)
    return nest


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") or isinstance(value, Mapping | tuple)


def _fit_array(value: Any) -> Any:
    if hasattr(value, "detach"):  # a tensor of torch
        value = value.detach().cpu()
    dtype = getattr(getattr(value, "dtype", None), "numpy_dtype", None)  # of pandas's Int64, ...
    if not (isinstance(value, list | int | float | str | bytes) or hasattr(value, "__array__")):
        return value
    try:
        found = np.asarray(value, dtype)
    except (TypeError, ValueError):
        # Who makes a tensor of it names it. A column with missing values would be float.
        return value if dtype is None else np.asarray(value, object)
    if is_table(value) and found.dtype == object:
        return value
    is_float = found.dtype.kind == "f" or found.dtype.name == "bfloat16"
    return found.astype(keras.config.floatx()) if is_float else found
