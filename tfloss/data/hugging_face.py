"""Data sets of Hugging Face's `datasets`, as the items of a `Source`. Host code.

Nothing here imports the package.
"""

from typing import Any

from tfloss.data.table_columns import check_complete


def is_hugging_face(data: Any) -> bool:
    """Returns whether an object is a `datasets.Dataset`, which has random access.

    Args:
      data: Any object.
    """
    return hasattr(data, "with_format") and hasattr(data, "column_names") and hasattr(data, "data")


def numpy_items(data: Any) -> Any:
    """Returns the data set with items of numpy values: a dict of columns for each example.

    Args:
      data: The data set.

    Raises:
      DataError: A value is missing. The message names the column and the row.
    """
    for name in data.column_names:
        if data.data.column(name).null_count:  # maybe in rows that were left out
            column = data.select_columns([name]).with_format("arrow")[:].column(name)
            check_complete(column, name)
    return data.with_format("numpy")
