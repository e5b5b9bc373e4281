"""The table of a watched step: what is left out, and its histograms."""

import numpy as np

from tfloss.hooks.event_protos import _histogram
from tfloss.hooks.watch_table import WatchTable, histograms
from tfloss.step.watched import BUCKETS, Watched, WatchedNames


def _watched(products, descent=None, norms=((1.0, 0.5, 2.0),), counts=None, ranges=None):
    losses = tuple("abc"[: len(products)])
    paths = tuple(f"v{i}" for i in range(len(norms)))
    return Watched(
        WatchedNames(paths, losses),
        np.array(norms, np.float32),
        np.zeros([0, 3, 2]) if ranges is None else ranges,
        np.zeros([0, 3, BUCKETS]) if counts is None else counts,
        np.array(products, np.float32),
        np.ones([len(losses)], np.float32) if descent is None else np.array(descent, np.float32),
    )


def test_losses_that_share_nothing_are_left_out():
    table = WatchTable(3, [_watched([[4.0, 0.0, 2.0], [0.0, 0.0, 0.0], [2.0, 0.0, 1.0]])])
    assert table.losses == ("a", "c")
    assert table.cosines["a", "c"] == 1.0
    assert WatchTable(3, [_watched([[4.0]])]).losses == ()


def test_what_is_undefined_is_no_curve():
    table = WatchTable(3, [_watched([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0], [(1.0, 0.5, 0.0)])])
    scalars = table.scalars()
    assert "watch/share/a" not in scalars
    assert "watch/update_ratio/v0" not in scalars
    assert scalars["watch/cosine/a,b"] == 0.0
    assert "-" in str(table).splitlines()[2].split()


def test_calls_are_put_together():
    one, other = _watched([[1.0, 1.0], [1.0, 1.0]]), _watched([[1.0]], norms=[(7.0, 0.0, 1.0)])
    table = WatchTable(1, [one, other])
    assert table.norms["v0"][0] == 7.0
    assert table.losses == ("a", "b")


def test_the_table_as_text():
    table = WatchTable(20, [_watched([[9.0, -3.0], [-3.0, 4.0]], [3.0, 1.0])])
    assert str(table).splitlines() == [
        "Step 20: norms",
        "variable  gradient  update  weight  update/weight",
        "v0               1     0.5       2           0.25",
        "",
        "Losses: norm of the gradient on shared variables, share of the update, cosines",
        "loss  gradient  share      a      b",
        "a            3    75%   1.00  -0.50",
        "b            2    25%  -0.50   1.00",
    ]


def test_histograms_have_the_edges_and_counts_of_tensorboard():
    counts, ranges = np.zeros([1, 3, BUCKETS], np.int32), np.zeros([1, 3, 2], np.float32)
    counts[0, 2, [0, 29]], ranges[0, 2] = [3, 1], [-1.0, 2.0]
    found = histograms([_watched([[1.0]], counts=counts, ranges=ranges)])
    assert [one.name for one in found] == [
        "watch/gradient/v0",
        "watch/update/v0",
        "watch/weight/v0",
    ]
    expected = _histogram(np.array([-1.0, -0.95, -0.91, 2.0]), None)
    np.testing.assert_allclose(found[2].value, expected, atol=1e-6)
