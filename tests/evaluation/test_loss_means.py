"""Every example of a validation set counts once, or every batch if nobody can tell examples."""

import pytest

from tfloss.data import BatchLayout
from tfloss.data.batch_layout import ROWS_ARE_EXAMPLES
from tfloss.errors import DataError
from tfloss.evaluation.loss_means import LossMeans

A, B = "batch['a']", "batch['b']"


def test_every_example_counts_once():
    means = LossMeans(ROWS_ARE_EXAMPLES)
    means.add({A: 3}, [2, 1], [[1.0, 0.0], [4.0, 3.0]])
    means.add({A: 1}, [1], [[6.0, 1.0]])
    assert means.result(["x", "y"]) == {"x": (2 + 4 + 6) / 4, "y": (3 + 1) / 4}


def test_a_loss_of_no_examples_is_left_out():
    means = LossMeans(ROWS_ARE_EXAMPLES)
    means.add({A: 0}, [0], [[float("nan")]])
    with pytest.raises(DataError, match="is empty"):
        means.result(["x"])
    means.add({A: 2}, [2], [[3.0]])
    assert means.result(["x"]) == {"x": 3.0}


def test_batches_of_scalars_count_once():
    means = LossMeans(ROWS_ARE_EXAMPLES)
    for loss in (1.0, 3.0):
        means.add({}, [None], [[loss]])
    assert means.result(["x"]) == {"x": 2.0}


def test_every_batch_counts_once_where_examples_are_unclear():
    batches = [({A: 2, B: 3}, [5], [[1.0]]), ({A: 6, B: 5}, [7, 4], [[2.0], [13.0]])]
    means, declared = LossMeans(ROWS_ARE_EXAMPLES), LossMeans(BatchLayout("a"))
    for sizes, counts, losses in batches:
        means.add(sizes, counts, losses)
    with pytest.warns(UserWarning, match="means in which every batch counts once"):
        assert means.result(["x"])["x"] == pytest.approx((1 + (7 * 2 + 4 * 13) / 11) / 2)
    assert means.result([]) == {}  # no warning without losses
    declared.add({A: 2, B: 3}, [2], [[1.0]])
    declared.add({A: 6, B: 5}, [6], [[2.0]])
    assert declared.result(["x"]) == {"x": (2 * 1 + 6 * 2) / 8}
