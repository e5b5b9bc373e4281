import warnings

import keras
import pytest

from tests.toys import NO_DATA, Accuracy
from tfloss.evaluation.metrics import metric
from tfloss.hooks import EarlyStopping, Evaluate, ExportBest, Hook, SaveCheckpoint
from tfloss.hooks.monitored_metric import MonitoredMetric, known_mode


class ErrorRate(keras.metrics.BinaryAccuracy):
    """Inherits the direction of the accuracy, but lower values are better."""

    def result(self):
        return 1.0 - super().result()


def _bound(keras_metric):
    return metric(keras_metric, lambda batch, predictions: (batch, predictions))


EVALUATE = Evaluate(
    NO_DATA,
    {
        "mae": _bound(keras.metrics.MeanAbsoluteError()),
        "accuracy": _bound(keras.metrics.BinaryAccuracy()),
        "f1": _bound(keras.metrics.F1Score()),
        "mean": _bound(keras.metrics.Mean()),
        "error_rate": _bound(ErrorRate()),
        "loss": _bound(keras.metrics.MeanMetricWrapper(lambda y, p: abs(y - p))),
        "coco": Accuracy(),
        "losses": _bound(keras.metrics.Mean()),
        "test/map": Accuracy(),
    },
    losses=True,
)
OTHER = Evaluate(NO_DATA, {"accuracy": _bound(keras.metrics.BinaryAccuracy())}, name="losses")


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("val/mae", "min"),
        ("val/accuracy", "max"),
        ("val/f1/0", "max"),
        ("val/coco/box/AP50", "max"),
        ("val/test/map", "max"),
        ("losses/total", "min"),
        ("losses/rpn/box", "min"),
        ("weighted_losses/kl", "min"),
        ("losses/accuracy", "max"),  # the evaluation named "losses"
        # Nobody knows these.
        ("val/mean", None),
        ("val/error_rate", None),
        ("val/loss", None),
        ("val/losses", None),
        ("val/losses/total", None),  # the metric "losses", or a validation loss
        ("losses", None),
        ("test/losses/total", None),  # logged by nobody
        ("accuracy", None),
        ("val/acuracy", None),
    ],
)
def test_the_direction_is_that_of_the_metric_and_not_of_its_name(name, mode):
    assert known_mode(name, [EVALUATE, OTHER]) == mode


def test_validation_losses_are_minimised():
    assert known_mode("val/losses/total", [Evaluate(NO_DATA, {}, losses=True)]) == "min"
    assert known_mode("val/losses/total", [Evaluate(NO_DATA, {})]) is None


def test_two_evaluations_that_disagree_know_nothing():
    hooks = [
        Evaluate(NO_DATA, {"a/x": _bound(keras.metrics.MeanAbsoluteError())}),
        Evaluate(NO_DATA, {"x": _bound(keras.metrics.BinaryAccuracy())}, name="val/a"),
    ]
    assert known_mode("val/a/x", hooks[:1]) == "min" and known_mode("val/a/x", hooks) is None


@pytest.mark.parametrize(
    "make",
    [
        lambda name, mode=None: EarlyStopping(name, patience=1, mode=mode),
        lambda name, mode=None: ExportBest(name, mode, path="unused"),
        lambda name, mode=None: SaveCheckpoint(keep_best=1, metric=name, mode=mode),
    ],
    ids=["EarlyStopping", "ExportBest", "SaveCheckpoint"],
)
def test_every_hook_that_looks_for_the_best_must_know_the_direction(make, make_trainer, request):
    owner = request.node.callspec.id
    message = f"{owner} monitors 'val/mean', and nobody knows.*mode='min'"
    with pytest.raises(ValueError, match=message):
        make_trainer([EVALUATE, make("val/mean")]).begin(1)
    for hook, mode in [
        (make("val/mae"), "min"),
        (make("val/accuracy"), "max"),
        (make("val/accuracy", "min"), "min"),
        (make("val/mean", "max"), "max"),
    ]:
        make_trainer([EVALUATE, hook]).begin(1)
        assert hook._metric.mode == mode


class _Own(Hook):
    """It may log any name."""


def test_a_name_that_no_evaluation_logs_is_refused_before_training(make_trainer):
    for mode in ("max", None):
        message = "'val/acuracy', which no Evaluate hook logs. Did you mean 'val/accuracy'"
        with pytest.raises(ValueError, match=message):
            make_trainer([EVALUATE, EarlyStopping("val/acuracy", patience=1, mode=mode)]).begin(1)
    without = Evaluate(NO_DATA, {"accuracy": _bound(keras.metrics.BinaryAccuracy())})
    with pytest.raises(ValueError, match=r"losses need Evaluate\(..., losses=True\)"):
        make_trainer([without, EarlyStopping("val/losses/total", patience=1, mode="min")]).begin(1)
    for hooks in (
        [EVALUATE, _Own(), EarlyStopping("val/own", patience=1, mode="min")],
        [OTHER, EarlyStopping("losses/total", patience=1)],
        [EVALUATE, EarlyStopping("test/accuracy", patience=1, mode="max")],  # of a summary
    ):
        make_trainer(hooks).begin(1)


def test_a_name_that_training_does_not_log_is_reported_at_its_first_log():
    monitored = MonitoredMetric("EarlyStopping", "val_loss", "min")
    log = {"losses/total": 1.0, "losses/val": 1.0, "learning_rate": 0.1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitored.start([_Own()])
        monitored.value(10, log)
        monitored.start([EVALUATE])
        monitored.value(10, {"val/accuracy": 0.5})
    with pytest.warns(UserWarning, match="monitors 'val_loss', which is missing in the log of st"):
        monitored.value(20, log)


@pytest.mark.parametrize(("mode", "lower_is_better"), [("min", True), ("max", False)])
def test_the_mode_decides_what_is_better(mode, lower_is_better):
    monitored = MonitoredMetric("Owner", "val/error", mode)
    assert monitored.is_improvement(1.0, 2.0) is lower_is_better
    assert monitored.is_improvement(2.0, 1.0) is not lower_is_better


def test_an_improvement_is_finite_and_exceeds_min_delta():
    monitored = MonitoredMetric("Owner", "val/accuracy", "max", min_delta=0.1)
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
