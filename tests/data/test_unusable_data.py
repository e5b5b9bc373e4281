"""What is no data set is refused with what to give instead."""

import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tfloss.data.unusable_data import check_input_function, unusable_data
from tfloss.errors import DataError


class Column:
    """Like a column of pandas."""

    def __init__(self, values):
        self._values, self.dtype = values, values.dtype

    def isna(self):
        return np.zeros(len(self._values), bool)

    __array__ = lambda self, *_, **__: self._values  # noqa: E731


class Table:
    """Like a data frame of pandas."""

    def __init__(self, **columns):
        self.columns = list(columns)
        self.dtypes = {name: np.asarray(values).dtype for name, values in columns.items()}
        self._values = np.array(list(zip(*columns.values(), strict=True)))

    def to_numpy(self):
        return self._values

    def __getitem__(self, name):
        return Column(self._values[:, self.columns.index(name)])

    __array__ = lambda self, *_, **__: self._values  # noqa: E731


class Loader:
    """Like a loader of torch."""

    dataset, batch_size = [], 8


@pytest.mark.parametrize(
    ("data", "advice"),
    [
        (np.zeros([4, 2]), "Source(arrays"),
        ({"x": np.zeros(4)}, "Source(arrays"),
        (iter([1, 2]), "Give the generator function itself"),
        ([np.zeros(4), np.zeros(4)], "in a tuple, (x, y)"),
        (Table(age=[1, 2], size=[3, 4]), "'age': df['age'].to_numpy(), 'size'"),
        (Loader(), "loader.dataset"),
        (5, "got int"),
    ],
)
def test_the_message_has_what_to_give_instead(data, advice):
    assert advice in str(unusable_data(data))


def test_functions_are_called_with_a_context():
    check_input_function(lambda context: None)
    check_input_function(print)
    with pytest.raises(DataError, match="def no_context\\(context\\)"):

        def no_context():
            return None

        check_input_function(no_context)


@pytest.mark.parametrize("nest", [("{}",), {"x": ("{}",)}])
def test_an_array_of_several_types_is_named(nest):
    bad = np.array(["a", None], object)
    path = "examples['x'][0]" if isinstance(nest, dict) else "examples[0]"
    nest = {"x": (bad,)} if isinstance(nest, dict) else (bad,)
    with pytest.raises(DataError) as e:
        tfloss.data.Source(nest, batch_size=1)
    assert str(e.value).startswith(f"{path}, of type ndarray, is not an array:")


def test_a_table_of_one_type_is_an_array():
    source = tfloss.data.Source((Table(a=[1.0, 2.0]), [0, 1]), batch_size=2)
    assert source.element_spec[0] == tf.TensorSpec([2, 1], tf.float64)
