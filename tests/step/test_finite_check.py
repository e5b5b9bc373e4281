"""The sum of gradients, which is finite if they are."""

import numpy as np
import pytest
import tensorflow as tf

from tfloss.step.finite_check import element_sum

SHAPES = [[2], [2], [3, 2], [3, 2], [], [300, 300], [300, 300]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("jit", [False, True])
def test_a_single_bad_element_anywhere_is_found(bad, jit):
    found = tf.function(lambda *values: element_sum(values), jit_compile=jit, autograph=False)
    values = [np.ones(shape, np.float32) for shape in SHAPES]
    assert float(found(*values)) == 2 + 2 + 6 + 6 + 1 + 90000 + 90000
    for number in range(len(values)):
        poisoned = [value.copy() for value in values]
        poisoned[number][(-1,) * poisoned[number].ndim] = bad
        assert not np.isfinite(float(found(*poisoned))), SHAPES[number]


def test_infinities_of_both_signs_do_not_cancel():
    assert np.isnan(float(element_sum([tf.constant([np.inf]), tf.constant([-np.inf])])))


def test_only_the_values_of_sparse_gradients_count():
    sparse = tf.IndexedSlices(tf.constant([[1.0, np.nan]]), tf.constant([7]), tf.constant([9, 2]))
    assert np.isnan(float(element_sum([sparse, tf.constant([1.0])])))


@pytest.mark.parametrize(
    ("dtype", "large"),
    [("float16", 6e4), ("bfloat16", 1e36), ("float32", 1e30), ("float64", 1e300)],
)
def test_large_finite_elements_are_no_fault_in_any_dtype(dtype, large):
    values = [tf.cast(tf.fill([4], tf.constant(large, tf.float64)), dtype)] * 3
    assert np.isfinite(float(element_sum(values)))
    bad = tf.cast(tf.constant([np.inf]), dtype)
    assert not np.isfinite(float(element_sum([*values, bad])))


def test_no_gradients_are_finite():
    assert float(element_sum([])) == 0.0
