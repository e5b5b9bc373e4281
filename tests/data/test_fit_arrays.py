"""Arrays are what `fit` makes of them before a model sees them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfloss.data.fit_arrays import fit_arrays
from tfloss.data.table_columns import column_arrays


def seen_by_fit(x):
    found = []

    class Seen(keras.Model):
        def train_step(self, data):
            found.append(keras.utils.unpack_x_y_sample_weight(data)[0])
            return {"loss": tf.zeros([])}

    model = Seen()
    model.compile(run_eagerly=True)
    model.fit(x, batch_size=2, shuffle=False, verbose=0)
    return found[0].numpy()


@pytest.mark.parametrize("dtype", ["float64", "float16", "float32", "int64", "uint8", "bool"])
def test_types_are_those_of_fit(dtype):
    x = np.array([[0, 1], [1, 1]], dtype)
    assert fit_arrays(x).dtype == seen_by_fit(x).dtype
    np.testing.assert_array_equal(fit_arrays(tf.constant(x)), seen_by_fit(x))


def test_nests():
    x, y = np.zeros([3, 2]), np.zeros(3)
    found = fit_arrays(([x, y], {"n": [1, 2, 3]}))
    assert isinstance(found[0], tuple) and found[0][0].dtype == np.float32
    assert found[1]["n"].tolist() == [1, 2, 3] and fit_arrays(None) is None


def test_tables():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"a": [1.5, 2.5], "b": [1, 2], "c": ["x", "y"]})
    table["d"] = pandas.array([3, 4], dtype="Int64")
    found = fit_arrays(column_arrays(table))
    assert {key: one.dtype.kind for key, one in found.items()} == dict(a="f", b="i", c="O", d="i")
    np.testing.assert_array_equal(fit_arrays(table[["a", "b"]]), seen_by_fit(table[["a", "b"]]))
