import warnings

import pytest

from tfloss.hooks import EarlyStopping, ExportBest, SaveCheckpoint
from tfloss.hooks._watch import Watch


@pytest.mark.parametrize(
    ("metric", "mode", "lower_is_better"),
    [
        ("losses/total", None, True),
        ("val/losses/total", None, True),
        ("val/losses/rpn/box", None, True),
        ("weighted_losses/kl", None, True),
        ("val/accuracy", None, False),
        ("val/losses", None, False),  # a metric of that name, not a loss
        ("losses_found", None, False),
        ("val/losses/total", "max", False),
        ("val/error", "min", True),
    ],
)
def test_less_is_better_of_losses_unless_said_otherwise(metric, mode, lower_is_better):
    watch = Watch("Owner", metric, mode)
    assert watch.better(1.0, 2.0) is lower_is_better
    assert watch.better(2.0, 1.0) is not lower_is_better


def test_every_hook_with_a_mode_leaves_it_to_the_metric():
    for hook in [
        EarlyStopping("val/losses/total", patience=1),
        ExportBest("val/losses/total"),
        SaveCheckpoint(keep_best=1, metric="val/losses/total"),
    ]:
        assert hook._watch.mode == "min"


def test_a_metric_that_its_neighbours_lack_is_told_at_their_first_log():
    watch = Watch("ExportBest", "val/acuracy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert watch.value(10, {"losses/total": 1.0, "accuracy": 0.5}) is None
    with pytest.warns(UserWarning) as caught:
        watch.value(20, {"val/accuracy": 0.5, "val/losses/total": 1.0, "test/x": 2.0})
        watch.value(30, {"val/accuracy": 0.5})
    assert [str(one.message) for one in caught] == [
        "ExportBest waits for 'val/acuracy', and what was logged at step 20 lacks it. Did you "
        "mean 'val/accuracy'? Logged were: val/accuracy, val/losses/total."
    ]


@pytest.mark.parametrize(
    ("metric", "log", "told"),
    [
        ("val/coco/map", {"val/lvis/map": 0.5}, False),  # another Evaluate's, before its own
        ("val/coco/losses/rpn/box", {"val/lvis/map": 0.5}, False),
        ("val/coco/losses/rpn/box", {"val/coco/map": 0.5}, True),  # losses=True was forgotten
        ("val/losses/rpn/box", {"val/accuracy": 0.5}, True),
        ("losses/bocks", {"losses/box": 0.5}, True),
        ("losses/bocks", {"val/losses/box": 0.5, "learning_rate": 0.1}, False),
    ],
)
def test_neighbours_are_what_the_same_evaluation_logs(metric, log, told):
    watch = Watch("ExportBest", metric)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watch.value(10, log)
    assert bool(caught) == told


def test_a_metric_that_came_once_may_be_missing_later():
    watch = Watch("ExportBest", "val/accuracy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert watch.value(1, {"val/accuracy": 0.5}) == 0.5
        assert watch.value(2, {"val/losses/total": 0.5}) is None
