"""What all workers must have in common."""

import json
import sys
from types import SimpleNamespace

import keras
import pytest
import tensorflow as tf

import tfloss
from tests.toys import Line, rows
from tfloss.data import Source
from tfloss.data.batch_reader import BatchReader
from tfloss.errors import WorkerError
from tfloss.hooks import Evaluate, Every, Hook, TensorBoard
from tfloss.step.train_step import TrainStep
from tfloss.trainer.worker_comparison import (
    compare_workers,
    data_settings,
    optimizer_settings,
    trainer_settings,
)

STRATEGY = tf.distribute.get_strategy()


class Recorder:
    """The agreement of one of two equal workers: keeps what is compared."""

    workers, index = 2, 0

    def gather(self, place, value, *, forget_errors):
        self.forget_errors = forget_errors
        return [value, value]

    def require_equal(self, values, advice, place):
        self.values = json.loads(json.dumps(values))  # JSON can hold it


def settings(step=None, hooks=(), data=None, **options):
    """What a worker compares."""
    step = step or TrainStep(Line(), keras.optimizers.SGD(0.1))
    recorder = Recorder()
    trainer = SimpleNamespace(agreement=recorder, train_step=step, hooks=list(hooks))
    compare_workers(trainer, BatchReader(data or rows([1.0, 2.0], 2), STRATEGY), options)
    assert recorder.forget_errors
    return recorder.values


def test_a_single_worker_compares_nothing():
    trainer = SimpleNamespace(agreement=SimpleNamespace(workers=1), train_step=None)
    compare_workers(trainer, None, {})


def test_equal_workers_are_equal_in_another_process_too():
    step = lambda: TrainStep(Line(), keras.optimizers.Adam(0.1), loss_weights={"a": lambda s: 1.0})  # noqa: E731
    assert settings(step()) == settings(step())


@pytest.mark.parametrize(
    ("other", "path"),
    [
        ({"step": {"clip_norm": 1.0}}, "step clip_norm"),
        ({"step": {"loss_weights": {"mse": 2.0}}}, "step loss_weights"),
        ({"step": {"accumulate": 2}}, "step accumulate"),
        ({"step": {"ema": 0.9}}, "step ema"),
        ({"step": {"skip_nonfinite": True}}, "step skip_nonfinite"),
        ({"step": {"precision": "mixed_bfloat16"}}, "step precision"),
        ({"step": {"fused_adam": False}}, "step fused_adam"),
        ({"optimizer": keras.optimizers.SGD(0.2)}, "optimizers optimizer learning_rate"),
        ({"optimizer": keras.optimizers.SGD(0.1, momentum=0.9)}, "optimizers optimizer momentum"),
        ({"optimizer": keras.optimizers.Adam(0.1)}, "optimizers optimizer class"),
        ({"data": rows([1.0, 2.0], 2).take(3)}, "data number of batches"),
        ({"data": rows([1.0, 2.0], 2, "y")}, "data batches"),
        (
            {"hooks": [Evaluate(rows([1.0], 1), {}, losses=True, every=Every(steps=2))]},
            "hooks order",
        ),
        ({"steps": 7}, "steps"),
    ],
)
def test_a_difference_shows(other, path):
    other = dict(other)
    optimizer = other.pop("optimizer", None) or keras.optimizers.SGD(0.1)
    step = TrainStep(Line(), optimizer, **other.pop("step", {}))
    one, two = settings(steps=5), settings(step, **{"steps": 5, **other})
    for key in path.split(" ", path.count(" ") if path.count(" ") < 3 else 1):
        if key in one or key in two:
            assert one.get(key) != two.get(key), (one, two)
            one, two = one.get(key), two.get(key)
            if not (isinstance(one, dict) and isinstance(two, dict)):
                break


def test_hooks_that_only_the_first_worker_calls_need_not_be_the_same():
    class Mine(Hook):
        chief_only = True

    class Timed(Hook):
        chief_only, every = True, Every(steps=3)

    without = settings(hooks=[])["hooks"]
    assert settings(hooks=[Mine()])["hooks"] == without
    assert settings(hooks=[Timed()])["hooks"]["Timed"] == {"every": "Every(steps=3)"}  # agreed on
    assert settings(hooks=[TensorBoard()])["hooks"] != without


def test_the_source_of_the_users_modules_is_compared(tmp_path, monkeypatch):
    module = tmp_path / "my_losses.py"
    module.write_text("A = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    import my_losses  # noqa: F401

    before = settings()["code"]
    module.write_text("A = 2\n")
    after = settings()["code"]
    sys.modules.pop("my_losses")

    assert {name for name in before if before[name] != after[name]} == {"my_losses.py (my_losses)"}
    libraries = ("(keras", "(numpy", "(scipy", "(google", "(rich")
    assert "tfloss" in before and not any(part in name for name in before for part in libraries)


def test_modules_that_one_worker_does_not_load_do_not_count(monkeypatch):
    class Other(Recorder):
        def gather(self, place, value, *, forget_errors):
            return [value, {"tfloss": value["tfloss"]}]

    recorder = Other()
    step = TrainStep(Line(), keras.optimizers.SGD(0.1))
    trainer = SimpleNamespace(agreement=recorder, train_step=step, hooks=[])
    compare_workers(trainer, BatchReader(rows([1.0], 1), STRATEGY), {})
    assert list(recorder.values["code"]) == ["tfloss"]


def test_each_worker_has_batches_of_its_own_from_a_function():
    def found(batch):
        reader = BatchReader(lambda context: rows([1.0, 2.0], batch), STRATEGY)
        reader.shared = False  # as on several workers
        return data_settings(reader)

    assert found(1) == found(2) == {"kind": "a function"}


def test_a_source_is_compared_by_its_identity():
    def found(seed):
        examples = [{"x": float(i)} for i in range(8)]
        return data_settings(BatchReader(Source(examples, batch_size=2, seed=seed), STRATEGY))

    assert found(1) == found(1) and found(1) != found(2)
    json.dumps(found(1))


def test_an_optimizer_whose_rate_is_a_function_is_described():
    def text(rate):
        return json.dumps(optimizer_settings(keras.optimizers.SGD(rate, momentum=0.9)))

    decay = keras.optimizers.schedules.CosineDecay
    assert text(decay(0.1, 10)) == text(decay(0.1, 10)) != text(decay(0.1, 20))
    assert '"momentum": 0.9' in text(lambda: 0.1)
    assert '"class": "SGD"' in text(eval("lambda: 0.1"))  # Keras finds no source code, as in a REPL


def test_the_trainers_arguments_are_chosen():
    arguments = dict.fromkeys(
        "jit log_every log_every_step steps_per_call seed deterministic async_checkpoint".split(), 1
    )
    found = trainer_settings({**arguments, "workdir": "runs/mine", "model": object()})
    assert found == {**arguments, "has a workdir": True}  # the path may differ


def test_the_trainer_compares_before_it_builds_the_model(monkeypatch):
    model = Line()
    trainer = tfloss.Trainer(model, keras.optimizers.SGD(0.1), default_hooks=False, jit=False)

    def refuse(values, advice, place):
        raise WorkerError(f"{values['steps']} {values['jit']} {values['log_every']}")

    monkeypatch.setattr(trainer.agreement, "workers", 2)
    monkeypatch.setattr(trainer.agreement, "gather", lambda place, value, **_: [value, value])
    monkeypatch.setattr(trainer.agreement, "require_equal", refuse)
    with pytest.raises(WorkerError, match="3 False 100"):
        trainer.train(rows([1.0, 2.0], 2), 3)
    assert trainer.step == 0
