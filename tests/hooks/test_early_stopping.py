import json

import pytest

from tests.toys import NO_DATA, Accuracy
from tfloss.hooks import EarlyStopping, Evaluate, Every

NAN = float("nan")


def trainer_of(make_trainer, values, hook, name="accuracy"):
    results = {step: {name: value} for step, value in enumerate(values, 1)}
    evaluate = Evaluate(NO_DATA, {"accuracy": Accuracy()}, every=Every(steps=1), losses=True)
    return make_trainer([evaluate, hook], results=results)


@pytest.mark.parametrize(
    ("values", "options", "stop", "best"),
    [
        # 2 in a row without a new best: 0.5 and 0.6 after the 0.6 of step 2
        ([0.5, 0.6, 0.5, 0.6, 0.9], {"patience": 2}, 4, 0.6),
        ([0.5, 0.6, 0.5, 0.7, 0.6, 0.6, 0.9], {"patience": 2}, 6, 0.7),
        # gains of 0.05 do not exceed min_delta, and the best stays 0.5
        ([0.5, 0.55, 0.58, 0.9], {"patience": 2, "min_delta": 0.1}, 3, 0.5),
        ([0.5, 0.55, 0.65, 0.7, 0.7], {"patience": 2, "min_delta": 0.1}, 5, 0.65),
        ([3.0, 2.0, 2.5, 2.0, 1.0], {"patience": 2, "mode": "min"}, 4, 2.0),
        ([NAN, NAN, 0.5], {"patience": 2}, 2, None),
        ([0.5, NAN, float("inf"), 0.9], {"patience": 2}, 3, 0.5),
    ],
)
def test_it_stops_after_patience_evaluations_without_improvement(
    make_trainer, values, options, stop, best
):
    hook = EarlyStopping("val/accuracy", **options)
    trainer = trainer_of(make_trainer, values, hook)
    trainer.train(len(values))
    assert trainer.step == stop
    assert hook.state.get("best") == best


def test_the_reason_names_metric_best_value_and_patience(make_trainer):
    hook = EarlyStopping("val/losses/total", patience=2, min_delta=0.1)
    trainer = trainer_of(make_trainer, [0.5, 0.45, 0.5], hook, "losses/total")
    trainer.train(3)
    assert trainer.stopped == (
        "val/losses/total has not fallen below 0.5 (step 1) by more than 0.1 in the last "
        "2 evaluations"
    )


def test_an_improving_run_continues(make_trainer):
    trainer = trainer_of(make_trainer, [0.1, 0.2, 0.3], EarlyStopping("val/accuracy", patience=1))
    trainer.train(3)
    assert (trainer.step, trainer.stopped) == (3, None)


def test_a_resumed_run_stops_where_an_uninterrupted_one_does(make_trainer):
    values = [0.5, 0.7, 0.6, 0.65, 0.6, 0.9]
    uninterrupted = trainer_of(make_trainer, values, EarlyStopping("val/accuracy", patience=3))
    uninterrupted.train(6)
    first = trainer_of(make_trainer, values, EarlyStopping("val/accuracy", patience=3))
    first.train(3)
    second = trainer_of(make_trainer, values, EarlyStopping("val/accuracy", patience=3))
    second.restore(3, json.loads(json.dumps([hook.state for hook in first.hooks])))
    second.train(6)
    assert uninterrupted.step == second.step == 5
    assert uninterrupted.hooks[1].state == second.hooks[1].state


def test_a_run_out_of_patience_starts_again_only_if_patience_is_raised(make_trainer):
    values = [0.5, 0.4, 0.3, 0.2]
    first = trainer_of(make_trainer, values, EarlyStopping("val/accuracy", patience=1))
    first.train(4)
    states = [hook.state for hook in first.hooks]
    for patience, stop in [(1, 2), (2, 3)]:
        again = trainer_of(make_trainer, values, EarlyStopping("val/accuracy", patience=patience))
        again.restore(2, states)
        again.train(4)
        assert again.step == stop


def test_a_name_that_is_never_logged_is_refused(make_trainer):
    trainer = trainer_of(
        make_trainer, [0.5, 0.4], EarlyStopping("val/acuracy", mode="max", patience=1)
    )
    with pytest.raises(ValueError, match="no Evaluate hook logs. Did you mean 'val/accuracy'"):
        trainer.train(2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": 0}, "patience must be at least 1"),
        ({"patience": 1, "mode": "up"}, "mode must be 'max' or 'min'"),
        ({"patience": 1, "min_delta": -1.0}, "min_delta must be at least 0"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EarlyStopping("val/accuracy", **options)
