import pytest

from tests.toys import Accuracy
from tfloss.errors import NonFiniteLossError
from tfloss.hooks import EarlyStopping, Evaluate, Every

RESULTS = {s: {"accuracy": s / 10, "losses/total": 1 / s} for s in range(1, 10)}


def test_results_are_logged_under_the_name_at_the_due_steps_and_at_the_end(make_trainer):
    trainer = make_trainer([Evaluate("data", {}, every=Every(steps=2))], results=RESULTS)
    trainer.train(5)
    assert trainer.logged == [
        (2, {"val/accuracy": 0.2}),
        (4, {"val/accuracy": 0.4}),
        (5, {"val/accuracy": 0.5}),
    ]


def test_the_last_step_is_evaluated_once(make_trainer):
    trainer = make_trainer([Evaluate("data", {}, every=Every(steps=2))], results=RESULTS)
    trainer.train(4)
    assert [step for step, _ in trainer.logged] == [2, 4]


def test_validation_losses_and_another_name(make_trainer):
    hook = Evaluate("data", {}, name="test", losses=True)  # no every: only at the end
    trainer = make_trainer([hook], results=RESULTS)
    trainer.train(4)
    assert trainer.logged == [(4, {"test/accuracy": 0.4, "test/losses/total": 0.25})]


def test_a_failed_run_is_not_evaluated(make_trainer):
    def fail(step):
        raise NonFiniteLossError(step, {"total": float("nan")})

    trainer = make_trainer([Evaluate("data", {})], results=RESULTS, on_step=fail)
    trainer.train(4)
    assert trainer.logged == []


def test_a_finished_run_is_not_evaluated_again(make_trainer):
    trainer = make_trainer([Evaluate("data", {})], results=RESULTS)
    trainer.train(4)
    again = make_trainer([Evaluate("data", {})], results=RESULTS)
    again.restore(4, [trainer.hooks[0].state])
    again.train(4)
    assert again.logged == []


def test_a_stopped_run_is_evaluated_where_it_stopped(make_trainer):
    results = {s: {"accuracy": 0.5} for s in range(1, 10)}
    evaluate = Evaluate("data", {"accuracy": Accuracy()}, every=Every(steps=2))
    hooks = [evaluate, EarlyStopping("val/accuracy", patience=1)]
    trainer = make_trainer(hooks, results=results)
    trainer.train(9)
    assert trainer.step == 4
    assert [step for step, _ in trainer.logged] == [2, 4]


def test_two_hooks_with_the_same_name_are_refused(make_trainer):
    trainer = make_trainer([Evaluate("a", {}), Evaluate("b", {})])
    with pytest.raises(ValueError, match="under the name 'val'.*name='test'"):
        trainer.begin(1)
    make_trainer([Evaluate("a", {}), Evaluate("b", {}, name="test")]).begin(1)
    with pytest.raises(ValueError, match="name='val/'"):
        Evaluate("a", {}, name="val/")
