import warnings

import pytest

from tfloss.hooks import EarlyStopping, ExportBest, SaveCheckpoint
from tfloss.hooks.monitored_metric import MonitoredMetric, default_mode


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
def test_losses_are_minimized_unless_a_mode_is_given(metric, mode, lower_is_better):
    monitored = MonitoredMetric("Owner", metric, mode)
    assert monitored.is_improvement(1.0, 2.0) is lower_is_better
    assert monitored.is_improvement(2.0, 1.0) is not lower_is_better
    assert mode or default_mode(metric) == monitored.mode


def test_an_improvement_is_finite_and_exceeds_min_delta():
    monitored = MonitoredMetric("Owner", "val/accuracy", min_delta=0.1)
    assert monitored.is_improvement(0.5, None)
    assert not monitored.is_improvement(float("nan"), None)
    assert not monitored.is_improvement(float("inf"), 0.5)
    assert not monitored.is_improvement(0.59, 0.5)
    assert monitored.is_improvement(0.61, 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "best"}, r"Owner\(mode='best'\): mode must be 'max' or 'min'"),
        ({"min_delta": -1.0}, r"Owner\(min_delta=-1.0\): min_delta must be at least 0"),
        ({"min_delta": float("nan")}, "min_delta must be at least 0"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MonitoredMetric("Owner", "val/accuracy", **arguments)


def test_hooks_with_a_mode_take_the_default_of_the_metric():
    for hook in [
        EarlyStopping("val/losses/total", patience=1),
        ExportBest("val/losses/total"),
        SaveCheckpoint(keep_best=1, metric="val/losses/total"),
    ]:
        assert hook._metric.mode == "min"


def test_a_missing_metric_is_reported_at_the_first_log_of_its_neighbors():
    monitored = MonitoredMetric("ExportBest", "val/acuracy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert monitored.value(10, {"losses/total": 1.0, "accuracy": 0.5}) is None
    with pytest.warns(UserWarning) as caught:
        monitored.value(20, {"val/accuracy": 0.5, "val/losses/total": 1.0, "test/x": 2.0})
        monitored.value(30, {"val/accuracy": 0.5})
    assert [str(one.message) for one in caught] == [
        "ExportBest monitors 'val/acuracy', which is missing in the log of step 20. Did you mean "
        "'val/accuracy'? This log has: val/accuracy, val/losses/total."
    ]


@pytest.mark.parametrize(
    ("metric", "log", "reported"),
    [
        ("val/coco/map", {"val/lvis/map": 0.5}, False),  # another Evaluate's, before its own
        ("val/coco/losses/rpn/box", {"val/lvis/map": 0.5}, False),
        ("val/coco/losses/rpn/box", {"val/coco/map": 0.5}, True),  # losses=True was forgotten
        ("val/losses/rpn/box", {"val/accuracy": 0.5}, True),
        ("losses/bocks", {"losses/box": 0.5}, True),
        ("losses/bocks", {"val/losses/box": 0.5, "learning_rate": 0.1}, False),
    ],
)
def test_neighbors_are_what_the_same_evaluation_logs(metric, log, reported):
    monitored = MonitoredMetric("ExportBest", metric)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        monitored.value(10, log)
    assert bool(caught) == reported


def test_a_metric_that_was_logged_once_may_be_missing_later():
    monitored = MonitoredMetric("ExportBest", "val/accuracy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert monitored.value(1, {"val/accuracy": 0.5}) == 0.5
        assert monitored.value(2, {"val/losses/total": 0.5}) is None
