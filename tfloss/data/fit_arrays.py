"""Arrays as `fit` takes them: what Keras does to them before a model sees them. Host code."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tfloss.data.item_structure import map_leaves
from tfloss.data.table_columns import column_array, is_column, is_table, matrix


def fit_arrays(nest: Any) -> Any:
    """Returns a nest of numpy arrays as `fit` makes it.

    A list of arrays is a tuple, floats have Keras's `floatx`, and a table is a matrix. A leaf that
    is no array, such as None, stays as it is.

    Args:
      nest: Arrays, tensors of TensorFlow or torch, tables and columns, in dicts, tuples and lists.

    Raises:
      DataError: A column can't be an array, see `tfloss.data.table_columns`.
    """
    return map_leaves(_without_lists(nest), _fit_array)


def _without_lists(nest: Any, name: str = "") -> Any:
    if is_column(nest):
        return column_array(nest, name)
    if isinstance(nest, list) and nest and all(map(_is_array, nest)):
        nest = tuple(nest)
    if isinstance(nest, Mapping):
        return {key: _without_lists(one, str(key)) for key, one in nest.items()}
    if isinstance(nest, tuple):
        found = [_without_lists(one) for one in nest]
        return type(nest)(*found) if hasattr(nest, "_fields") else tuple(found)
    return nest


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") or isinstance(value, Mapping | tuple)


def _fit_array(value: Any) -> Any:
    if hasattr(value, "detach"):  # a tensor of torch
        value = value.detach().cpu()
    if is_table(value):
        found = matrix(value)
        if found is None:
            return value  # who makes a tensor of it names it
    elif isinstance(value, list | int | float | str | bytes) or hasattr(value, "__array__"):
        try:
            found = np.asarray(value)
        except (TypeError, ValueError):
            return value
    else:
        return value
    is_float = found.dtype.kind == "f" or found.dtype.name == "bfloat16"
    return found.astype(keras.config.floatx()) if is_float else found
