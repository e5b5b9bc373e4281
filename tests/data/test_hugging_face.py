"""Data sets of Hugging Face are read by index, and refused by column if a value is missing."""

import numpy as np
import pytest
import tensorflow as tf

from tfloss.data.adapted import adapted
from tfloss.data.source import Source
from tfloss.data.unusable_data import unusable_data
from tfloss.errors import DataError

datasets = pytest.importorskip("datasets")


def test_a_data_set_is_a_source_of_its_columns():
    data = datasets.Dataset.from_dict(
        {"x": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], "y": [1, 2, 3], "t": ["a", "b", "c"]}
    )
    source = adapted(data, 2)
    assert isinstance(source, Source)
    first, last = source.dataset()
    np.testing.assert_array_equal(first["x"], [[1, 2], [3, 4]])
    assert first["x"].dtype == tf.float32 and last["t"].numpy().tolist() == [b"c"]
    with pytest.raises(DataError, match="batch_size=32"):
        adapted(data)


def test_its_rows_are_shuffled_in_each_epoch():
    data = datasets.Dataset.from_dict({"y": list(range(20))})
    batches = adapted(data, 20, training=True).dataset().take(2)
    first, second = (batch["y"].numpy().tolist() for batch in batches)
    assert sorted(first) == sorted(second) == list(range(20)) and first != second


def test_missing_values_are_named_by_column_and_row():
    data = datasets.Dataset.from_dict({"x": [1.0, None, 3.0, None], "t": ["a", "b", "c", None]})
    with pytest.raises(DataError, match="Column 'x' has no value in row 1, .* and in 1 more"):
        adapted(data, 2)
    with pytest.raises(DataError, match="Column 't' has no value in row 2"):
        adapted(data.select([0, 2, 3]).remove_columns("x"), 2)
    assert len(adapted(data.select([0, 2]), 2)) == 2


def test_a_stream_is_refused_with_the_generator_function():
    data = datasets.Dataset.from_dict({"x": [1.0, 2.0]}).to_iterable_dataset()
    with pytest.raises(DataError, match="def batches"):
        adapted(data, 2)
    assert "def batches" in str(unusable_data(data))  # as without a batch size
