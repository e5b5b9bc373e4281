"""Columns of pandas, polars and Arrow as arrays, or refused by name with the cure. Host code.

| column | array |
| --- | --- |
| numbers, booleans, nullable ones too | numbers |
| strings | Python strings |
| categories | the values, not the codes |
| fixed-size arrays of polars | a matrix |
| missing values, dates, lists, other objects | refused |

Nothing here imports these packages: a column is known by its methods.
"""

import datetime
from typing import Any

import numpy as np

from tfloss.errors import DataError

_MISSING = ("isna", "is_null")  # methods of pandas; of polars and Arrow


def is_table(data: Any) -> bool:
    """Returns whether an object is a data frame, as of pandas or polars, or an Arrow table.

    Args:
      data: Any object.
    """
    return (hasattr(data, "to_numpy") and hasattr(data, "columns")) or _is_arrow(data)


def is_column(data: Any) -> bool:
    """Returns whether an object is a column of pandas, polars or Arrow.

    Args:
      data: Any object.
    """
    return (
        hasattr(data, "__array__")
        and not is_table(data)
        and any(hasattr(data, name) for name in _MISSING)
    )


def not_collected(data: Any) -> str:
    """Returns what to call on a table that isn't computed yet, such as "collect()", or "".

    Args:
      data: Any object.
    """
    # Of the class, since the names of a query's columns may have to be computed.
    if not hasattr(type(data), "columns") or is_table(data):
        return ""
    calls = ("toPandas", "collect", "compute")  # of Spark, polars, Dask
    return next((f"{one}()" for one in calls if hasattr(data, one)), "")


def column_names(table: Any) -> list[str]:
    """Returns the names of the columns of a table.

    Args:
      table: As `is_table` knows it.
    """
    return list(map(str, table.column_names if _is_arrow(table) else table.columns))


def column_arrays(table: Any) -> dict[str, np.ndarray]:
    """Returns the columns of a table by name.

    Args:
      table: As `is_table` knows it.

    Raises:
      DataError: See `column_array`; or two columns have one name.
    """
    names = column_names(table)
    if twice := {name for name in names if names.count(name) > 1}:
        raise DataError(f"Several columns of the table have the name {min(twice)!r}. Rename them.")
    labels = names if _is_arrow(table) else list(table.columns)
    return {
        name: column_array(table[label], name) for name, label in zip(names, labels, strict=True)
    }


def column_array(column: Any, name: str = "") -> np.ndarray:
    """Returns a column as an array.

    Args:
      column: As `is_column` knows it.
      name: Its name in messages, if it has none of its own.

    Returns:
      Numbers of a numpy dtype, or an object array of strings or bytes.

    Raises:
      DataError: A value is missing, or TensorFlow has no type for the values. The message names
        the column, the row and the cure.
    """
    what = check_complete(column, name)
    found = _values(column)
    if found.dtype.kind in "mM":
        raise DataError(
            f"{what} has the type {_dtype(column)}, which TensorFlow doesn't know. Make numbers of "
            f"it, such as seconds: {_seconds(column, found.dtype.kind)}"
        )
    if found.dtype.kind in "SU":
        return found.astype(object)
    return _plain_objects(found, what) if found.dtype == object else found


def check_complete(column: Any, name: str) -> str:
    """Checks that a column has a value in each row.

    Args:
      column: As `is_column` knows it.
      name: Its name in messages, if it has none of its own.

    Returns:
      What messages call the column.

    Raises:
      DataError: A value is missing. The message names the column, the row and the cure.
    """
    own = getattr(column, "name", None)
    name = name if own is None else str(own)
    what = f"Column {name!r}" if name else f"A column ({type(column).__name__})"
    masks = [getattr(column, one)() for one in _MISSING if hasattr(column, one)]
    missing = np.flatnonzero(np.asarray(masks[0], bool) if masks else [])
    if missing.size:
        more = f", and in {missing.size - 1} more" if missing.size > 1 else ""
        raise DataError(
            f"{what} has no value in row {missing[0]}, counted from 0{more}. Give every row a "
            f"value: {_filled(column)}. If the model itself handles NaN, give the column as a "
            "numpy array."
        )
    return what


def matrix(table: Any) -> np.ndarray | None:
    """Returns the columns of a table side by side, or None if there are numbers and strings.

    Args:
      table: As `is_table` knows it.

    Raises:
      DataError: See `column_array`.
    """
    found = list(column_arrays(table).values())
    strings = [one.dtype == object for one in found]
    if not found or any(strings) != all(strings) or any(one.ndim > 1 for one in found):
        return None
    return np.stack(found, 1)


def _is_arrow(data: Any) -> bool:
    return hasattr(data, "column_names") and hasattr(data, "schema") and hasattr(data, "to_pylist")


def _dtype(column: Any) -> str:
    return str(getattr(column, "dtype", getattr(column, "type", "object")))


def _values(column: Any) -> np.ndarray:
    kind: Any = getattr(column, "type", None)
    if hasattr(kind, "index_type") and hasattr(kind, "value_type"):  # a dictionary of Arrow
        column = column.cast(kind.value_type)
    dtype = getattr(getattr(column, "dtype", None), "numpy_dtype", None)  # of pandas's Int64, ...
    try:
        return np.asarray(column, dtype)
    except (TypeError, ValueError):
        return np.asarray(column, object)


def _plain_objects(found: np.ndarray, what: str) -> np.ndarray:
    """Returns an object array of strings or bytes as it is, and one of numbers as numbers."""
    kinds = {type(one) for one in found}
    for kind in (str, bytes):
        if all(issubclass(one, kind) for one in kinds):
            return found
    if all(issubclass(one, bool | int | float | np.generic) for one in kinds):
        numbers = np.array(found.tolist())
        if numbers.dtype.kind in "biuf":
            return numbers
    first = next(one for one in found if not isinstance(one, str)) if str in kinds else found[0]
    row = next(i for i, one in enumerate(found) if one is first)
    if isinstance(first, list | tuple | np.ndarray) or hasattr(first, "to_pylist"):
        cure = (
            "If all have one length, give np.stack(list(column)), an array with a row for each. "
            "Else pad them first, or give a tfloss.data.Source of a sequence with an element_spec."
        )
    elif isinstance(first, datetime.date | datetime.time | datetime.timedelta):
        cure = "Make numbers of them, such as seconds or days."
    else:
        cure = "Give the column one type: numbers, or strings, as by column.astype(float) or (str)."
    others = f" beside {_names(kinds - {type(first)})}" if len(kinds) > 1 else ""
    raise DataError(f"{what} has a {type(first).__name__} in row {row}{others}. {cure}")


def _names(kinds: set[type]) -> str:
    return ", ".join(sorted(one.__name__ for one in kinds))


def _filled(column: Any) -> str:
    if hasattr(column, "isna"):
        return "column.fillna(0), or table.dropna() to leave such rows out"
    if hasattr(column, "null_count") and hasattr(column, "drop_nulls"):
        return "column.fill_null(0), or table.drop_nulls() to leave such rows out"
    return "pyarrow.compute.fill_null(column, 0), or table.drop_null() to leave such rows out"


def _seconds(column: Any, kind: str) -> str:
    if hasattr(column, "isna"):
        since = "column" if kind == "m" else "(column - column.min())"
        return f"{since}.dt.total_seconds()."
    if hasattr(column, "drop_nulls"):
        return "column.dt.total_seconds()." if kind == "m" else 'column.dt.epoch("s").'
    return "column.cast(pyarrow.int64())."
