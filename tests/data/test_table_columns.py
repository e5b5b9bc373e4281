"""Columns of tables are arrays as `fit` takes them, or are refused by name before training."""

import datetime
import decimal

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tfloss.data.adapted import adapted
from tfloss.data.table_columns import column_array, column_arrays, is_column, is_table, matrix
from tfloss.errors import DataError


def pandas_table(values, dtype=None):
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame({"good": range(len(values)), "bad": pandas.Series(values, dtype=dtype)})


def polars_table(values, dtype=None):
    polars = pytest.importorskip("polars")
    kind = dtype and getattr(polars, dtype)
    return polars.DataFrame({"good": range(len(values)), "bad": polars.Series(values, dtype=kind)})


def arrow_table(values, dtype=None):
    arrow = pytest.importorskip("pyarrow")
    bad = arrow.array(values).dictionary_encode() if dtype == "dictionary" else arrow.array(values)
    return arrow.table({"good": list(range(len(values))), "bad": bad})


TABLES = [pandas_table, polars_table, arrow_table]
DAY = datetime.datetime(2024, 5, 1)


@pytest.mark.parametrize("make", TABLES)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.5, None, None], "has no value in row 1, counted from 0, and in 1 more. .*(fill|drop)"),
        (["a", "b", None], "has no value in row 2, counted from 0. "),
        ([True, None], "has no value in row 1"),
        ([DAY, DAY], "such as seconds: "),
        ([datetime.timedelta(1)], "such as seconds: "),
        ([DAY.date(), DAY.date()], "seconds"),
        ([[1, 2], [3]], "in row 0.*np.stack"),
        ([decimal.Decimal(1), decimal.Decimal(2)], "has a Decimal in row 0"),
    ],
    ids=["numbers", "strings", "booleans", "times", "durations", "dates", "lists", "decimals"],
)
def test_a_column_without_an_array_is_named_with_the_cure(make, values, message):
    for data in (make(values), (make(values), np.arange(len(values)))):
        with pytest.raises(DataError, match=f"^Column 'bad' .*{message}"):
            adapted(data, 2, training=True)
    with pytest.raises(DataError, match="Column 'bad'"):
        tfloss.data.Source((make(values),), batch_size=1)


@pytest.mark.parametrize("make", TABLES)
def test_plain_columns_are_arrays(make):
    for values, dtype in (([1, 2], "i"), ([0.5, 1.5], "f"), ([True, False], "b"), (["a", ""], "O")):
        found = column_arrays(make(values))
        assert list(found) == ["good", "bad"]
        assert found["bad"].dtype.kind == dtype and found["bad"].tolist() == values
        spec = adapted(make(values), 2).element_spec
        assert spec["bad"].dtype == {"i": tf.int64, "f": tf.float32, "b": tf.bool}.get(
            dtype, tf.string
        )
    np.testing.assert_array_equal(matrix(make([0.5, 1.5])), [[0, 0.5], [1, 1.5]])
    assert matrix(make(["a", "b"])) is None
    with pytest.raises(DataError, match="'good' is .*'bad' is "):
        adapted((make(["a", "b"]),), 1)


@pytest.mark.parametrize(
    ("make", "values", "dtype"),
    [
        (pandas_table, ["b", "a", "b"], "category"),
        (pandas_table, [3, 1, 3], "category"),
        (pandas_table, [3, 1, 3], "Int32"),
        (pandas_table, [0.5, 1.5], "Float32"),
        (pandas_table, [True, False], "boolean"),
        (pandas_table, ["a", "b"], "string"),
        (pandas_table, [1, 2], "int64[pyarrow]"),
        (pandas_table, ["a", "b"], "string[pyarrow]"),
        (pandas_table, [1, 2], "object"),
        (polars_table, ["b", "a", "b"], "Categorical"),
        (polars_table, [1, 2], "UInt8"),
        (arrow_table, ["b", "a", "b"], "dictionary"),
    ],
)
def test_categories_and_nullable_types_are_their_values(make, values, dtype):
    found = column_arrays(make(values, dtype))["bad"]
    assert found.tolist() == values
    assert found.dtype.kind in ("O" if isinstance(values[0], str) else "biuf")
    (batch,) = adapted(make(values, dtype), len(values)).dataset()
    assert [x.decode() if isinstance(x, bytes) else x for x in batch["bad"].numpy()] == values
    with pytest.raises(DataError, match="^Column 'bad' has no value in row 1"):
        adapted(make([values[0], None], dtype), 2)


def test_a_column_beside_a_matrix_is_named_too():
    pandas = pytest.importorskip("pandas")
    table = pandas_table([1.0, None])
    for y in (table["bad"], {"y": table["bad"]}, [table["bad"]]):
        with pytest.raises(DataError, match="^Column 'bad' has no value in row 1"):
            adapted((table[["good"]], y), 2)
        with pytest.raises(DataError, match="^Column 'bad' has no value in row 1"):
            tfloss.data.Source(tuple(y) if isinstance(y, list) else (y,), batch_size=1)
    numbers = (table[["good"]], table["bad"].to_numpy())  # the model knows what NaN means
    assert adapted(numbers, 2).element_spec[1].dtype == tf.float32
    mixed = pandas.Series(["a", 1, "b"], name="mixed", dtype=object)
    with pytest.raises(DataError, match="Column 'mixed' has a int in row 1 beside str"):
        column_array(mixed)
    zones = pandas.Series([pandas.Timestamp(DAY, tz="UTC")], name="zones")
    with pytest.raises(DataError, match="Column 'zones' .*seconds"):
        column_array(zones)
    twice = pandas.DataFrame([[1, 2]], columns=["a", "a"])
    with pytest.raises(DataError, match="Several columns of the table have the name 'a'"):
        column_arrays(twice)


def test_a_query_without_rows_is_refused_with_the_call():
    polars = pytest.importorskip("polars")
    query = polars.LazyFrame({"a": [1, 2]})
    for data in (query, (query,), {"x": query}):
        with pytest.raises(DataError, match=r"LazyFrame is a query .*data\.collect\(\)"):
            adapted(data, 2)
    for use in (lambda: adapted(query), lambda: tfloss.data.Source(query, batch_size=2)):
        with pytest.raises(DataError, match=r"data\.collect\(\)"):
            use()
    assert adapted(query.collect(), 2).element_spec["a"].dtype == tf.int64
    fixed = polars.DataFrame({"a": polars.Series([[1, 2], [3, 4]], dtype=polars.Array(int, 2))})
    assert adapted(fixed, 2).element_spec["a"].shape == [2, 2]


class Weight(keras.Model):
    """The mean of w x over the rows of a column."""

    def __init__(self):
        super().__init__(name="weight")
        self.w = self.add_weight(name="w", shape=(), initializer="ones")

    def call(self, batch, training=False):
        return tf.reduce_mean(self.w * tf.cast(batch["bad"], tf.float32))


@pytest.mark.parametrize("make", TABLES)
def test_a_model_is_trained_on_a_table(make):
    trainer = tfloss.Trainer(Weight(), keras.optimizers.SGD(0.5), jit=False, default_hooks=False)
    trainer.train(make([1.0, 2.0, 3.0, 6.0]), 2, batch_size=4)
    assert trainer.model.w.numpy() == 1.0 - 2 * 0.5 * 3.0  # the gradient is the mean of x


def test_other_objects_are_neither_tables_nor_columns():
    for other in (np.zeros(3), tf.zeros(3), [1], {"a": 1}, None, "text", Weight):
        assert not is_table(other) and not is_column(other)
