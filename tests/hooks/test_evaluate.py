import keras
import pytest
import tensorflow as tf

import tfloss
from tests.toys import NO_DATA, Accuracy, Line, rows
from tfloss.errors import DataError, NonFiniteLossError
from tfloss.hooks import EarlyStopping, Evaluate, Every

RESULTS = {s: {"accuracy": s / 10, "losses/total": 1 / s} for s in range(1, 10)}


def test_results_are_logged_under_the_name_at_the_due_steps_and_at_the_end(make_trainer):
    trainer = make_trainer([Evaluate(NO_DATA, {}, every=Every(steps=2))], results=RESULTS)
    trainer.train(5)
    assert trainer.logged == [
        (2, {"val/accuracy": 0.2}),
        (4, {"val/accuracy": 0.4}),
        (5, {"val/accuracy": 0.5}),
    ]


def test_the_last_step_is_evaluated_once(make_trainer):
    trainer = make_trainer([Evaluate(NO_DATA, {}, every=Every(steps=2))], results=RESULTS)
    trainer.train(4)
    assert [step for step, _ in trainer.logged] == [2, 4]


def test_validation_losses_and_another_name(make_trainer):
    hook = Evaluate(NO_DATA, {}, name="test", losses=True)  # no every: only at the end
    trainer = make_trainer([hook], results=RESULTS)
    trainer.train(4)
    assert trainer.logged == [(4, {"test/accuracy": 0.4, "test/losses/total": 0.25})]


def test_a_failed_run_is_not_evaluated(make_trainer):
    def fail(step):
        raise NonFiniteLossError(step, {"total": float("nan")})

    trainer = make_trainer([Evaluate(NO_DATA, {})], results=RESULTS, on_step=fail)
    trainer.train(4)
    assert trainer.logged == []


def test_a_finished_run_is_not_evaluated_again(make_trainer):
    trainer = make_trainer([Evaluate(NO_DATA, {})], results=RESULTS)
    trainer.train(4)
    again = make_trainer([Evaluate(NO_DATA, {})], results=RESULTS)
    again.restore(4, [trainer.hooks[0].state])
    again.train(4)
    assert again.logged == []


def test_a_stopped_run_is_evaluated_where_it_stopped(make_trainer):
    results = {s: {"accuracy": 0.5} for s in range(1, 10)}
    evaluate = Evaluate(NO_DATA, {"accuracy": Accuracy()}, every=Every(steps=2))
    hooks = [evaluate, EarlyStopping("val/accuracy", patience=1)]
    trainer = make_trainer(hooks, results=results)
    trainer.train(9)
    assert trainer.step == 4
    assert [step for step, _ in trainer.logged] == [2, 4]


def test_two_hooks_with_the_same_name_are_refused(make_trainer):
    trainer = make_trainer([Evaluate(NO_DATA, {}), Evaluate(NO_DATA, {})])
    with pytest.raises(ValueError, match="under the name 'val'.*name='test'"):
        trainer.begin(1)
    make_trainer([Evaluate(NO_DATA, {}), Evaluate(NO_DATA, {}, name="test")]).begin(1)
    with pytest.raises(ValueError, match="name='val/'"):
        Evaluate(NO_DATA, {}, name="val/")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tf.data.Dataset.range(8).batch(4).repeat(), r"infinite data set.*\.take\(n\)"),
        (lambda context: tf.data.Dataset.range(8).batch(4).repeat(), r"infinite.*\.take\(n\)"),
        (tfloss.data.Source({"x": [0.0, 1.0]}, batch_size=2), "infinite data set.*epochs=1"),
        ("data/val", "got str"),
    ],
    ids=["data set", "function", "source", "path"],
)
def test_data_that_can_not_be_evaluated_are_refused_before_the_first_step(data, message):
    model = Line()
    hooks = [Evaluate(data, losses=True, every=Every(steps=2))]
    trainer = tfloss.Trainer(model, keras.optimizers.SGD(0.1), default_hooks=False, jit=False)
    with pytest.raises(DataError, match=message):
        trainer.train(rows([1.0, 2.0], 2), 4, hooks=hooks)
    assert trainer.step == 0 and float(model.w) == 1.0
