import json

import pytest

from tfloss.errors import DataError, NonFiniteLossError
from tfloss.hooks import EarlyStopping, Evaluate, Every, SaveCheckpoint


def trainer_of(make_trainer, tmp_path, hook, values=(), evaluate_every=1):
    results = {step: {"accuracy": value} for step, value in enumerate(values, 1)}
    evaluate = [Evaluate("data", {}, every=Every(steps=evaluate_every))] if values else []
    return make_trainer([*evaluate, hook], workdir=tmp_path, results=results)


def test_it_saves_when_due_and_at_the_end(make_trainer, tmp_path):
    trainer = trainer_of(make_trainer, tmp_path, SaveCheckpoint(every=Every(steps=2)))
    trainer.train(5)
    assert trainer.saves == [2, 4, 5]


def test_the_end_is_not_saved_twice(make_trainer, tmp_path):
    trainer = trainer_of(make_trainer, tmp_path, SaveCheckpoint(Every(steps=2)))
    trainer.train(4)
    assert trainer.saves == [2, 4]
    trainer.train(4)  # already there
    assert trainer.saves == [2, 4]
    trainer.train(5)
    assert trainer.saves == [2, 4, 5]


@pytest.mark.parametrize(
    ("error", "saves"),
    [
        (NonFiniteLossError(5, {"total": float("nan")}), [2, 4]),
        (RuntimeError("a bug"), [2, 4]),
        (DataError("the data ended after 3 batches"), [2, 4, 5]),
        (KeyboardInterrupt(), [2, 4, 5]),
    ],
)
def test_a_failed_run_keeps_its_last_good_checkpoint(make_trainer, tmp_path, error, saves):
    def fail(step):
        if step == 6:
            raise error

    trainer = trainer_of(make_trainer, tmp_path, SaveCheckpoint(Every(steps=2)))
    trainer.on_step = fail
    trainer.train(9)
    assert trainer.saves == saves


@pytest.mark.parametrize(("keep_last", "kept"), [(1, [7]), (3, [5, 6, 7]), (None, [*range(1, 8)])])
def test_the_last_few_are_kept(make_trainer, tmp_path, keep_last, kept):
    hook = SaveCheckpoint(Every(steps=1), keep_last=keep_last)
    trainer = trainer_of(make_trainer, tmp_path, hook)
    trainer.train(7)
    assert trainer.checkpoints.steps() == kept


@pytest.mark.parametrize(
    ("mode", "values", "kept", "best"),
    [
        ("max", [0.5, 0.9, 0.1, 0.8, 0.2, 0.3], [2, 4, 6], [[0.9, 2], [0.8, 4]]),
        ("min", [0.5, 0.9, 0.1, 0.8, 0.2, 0.3], [3, 5, 6], [[0.1, 3], [0.2, 5]]),
        # of equals the earlier stays, and NaN is never among the best
        ("max", [0.5, 0.5, 0.5, float("nan"), 0.1, 0.1], [1, 2, 6], [[0.5, 1], [0.5, 2]]),
    ],
)
def test_the_best_are_kept_beside_the_last(make_trainer, tmp_path, mode, values, kept, best):
    hook = SaveCheckpoint(
        Every(steps=1), keep_last=1, keep_best=2, metric="val/accuracy", mode=mode
    )
    trainer = trainer_of(make_trainer, tmp_path, hook, values)
    trainer.train(6)
    assert trainer.checkpoints.steps() == kept
    assert hook.state["best"] == best
    # The newest checkpoint knows the ranking with itself in it.
    assert trainer.checkpoints.saved[6][1] == hook.state


def test_a_resumed_run_keeps_the_best_of_the_whole(make_trainer, tmp_path):
    values = [0.5, 0.9, 0.1, 0.3, 0.95, 0.3]
    make = lambda: SaveCheckpoint(  # noqa: E731
        Every(steps=1), keep_last=1, keep_best=1, metric="val/accuracy"
    )
    first = trainer_of(make_trainer, tmp_path, make(), values)
    first.train(3)
    assert first.checkpoints.steps() == [2, 3]
    second = trainer_of(make_trainer, tmp_path, make(), values)
    second.checkpoints = first.checkpoints
    second.restore(3, json.loads(json.dumps(first.checkpoints.saved[3])))
    second.train(4)
    assert second.checkpoints.steps() == [2, 4]
    second.train(6)
    assert second.checkpoints.steps() == [5, 6]


def test_a_best_checkpoint_that_somebody_deleted_makes_room(make_trainer, tmp_path):
    hook = SaveCheckpoint(Every(steps=1), keep_last=1, keep_best=1, metric="val/accuracy")
    trainer = trainer_of(make_trainer, tmp_path, hook, [0.9, 0.1, 0.5, 0.2])
    trainer.train(2)
    trainer.checkpoints.delete(1)
    trainer.train(4)
    assert trainer.checkpoints.steps() == [3, 4]


def test_the_last_checkpoint_holds_a_final_evaluation_that_came_after_it(make_trainer, tmp_path):
    evaluate = Evaluate("data", {}, every=Every(steps=3))
    stopping = EarlyStopping("val/accuracy", patience=9)
    save = SaveCheckpoint(Every(steps=2), keep_best=1, metric="val/accuracy")
    results = {3: {"accuracy": 0.5}, 4: {"accuracy": 0.75}}
    trainer = make_trainer([evaluate, stopping, save], workdir=tmp_path, results=results)
    trainer.train(4)  # saved at 2 and 4; then the end evaluates step 4, and saves it again
    assert trainer.saves == [2, 4, 4]
    assert trainer.checkpoints.saved[4] == [
        {"step": 4},
        {"best": 0.75, "step": 4, "count": 0},
        {"best": [[0.75, 4]]},
    ]


def test_periods_that_never_meet_are_reported(make_trainer, tmp_path):
    hook = SaveCheckpoint(Every(steps=2), keep_best=1, metric="val/accuracy")
    results = {3: {"accuracy": 0.5}}
    evaluate = Evaluate("data", {}, every=Every(steps=3))

    class Fails(Exception):
        pass

    def fail(step):
        if step == 6:
            raise Fails

    trainer = make_trainer([evaluate, hook], workdir=tmp_path, results=results, on_step=fail)
    with pytest.warns(UserWarning, match="kept nothing: no checkpoint was saved at a step where"):
        trainer.train(9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_last": 0}, "at least 1, or None for all"),
        ({"keep_best": -1}, "at least 0"),
        ({"keep_best": 1}, "keep_best and metric go together"),
        ({"metric": "val/accuracy"}, "keep_best and metric go together"),
        ({"keep_best": 1, "metric": "a", "mode": "best"}, "'max' or 'min'"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SaveCheckpoint(**options)


def test_it_needs_a_workdir(make_trainer):
    with pytest.raises(ValueError, match="give the Trainer a workdir"):
        make_trainer([SaveCheckpoint()], checkpoints=None).begin(1)
