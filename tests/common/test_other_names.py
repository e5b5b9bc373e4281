"""Names of other libraries are answered by what they are called here."""

import warnings

import keras
import pytest

import tfloss
from tests.toys import Line, rows
from tfloss.common.other_names import ARGUMENTS, METHODS, hint
from tfloss.hooks import Every


def trainer(**options):
    return tfloss.Trainer(Line(), keras.optimizers.SGD(0.1), default_hooks=False, **options)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("fit", "trainer.train(data, epochs=3)"),
        ("predict", "model(batch, training=False)"),
        ("validate", "trainer.evaluate(data, metrics)"),
        ("compile", "tfloss.adapters.from_compiled(model)"),
        ("save", "tfloss.export(model, path"),
        ("evaluat", "Did you mean 'evaluate'?"),
        ("save_checkpoints", "Did you mean 'save_checkpoint'?"),
    ],
)
def test_methods_of_other_trainers(name, says):
    with pytest.raises(AttributeError) as e:
        getattr(trainer(), name)
    assert f"has no attribute {name!r}" in str(e.value) and says in e.value.__notes__[0]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ModelCheckpoint", "Write SaveCheckpoint("),
        ("ReduceLROnPlateau", "Did you mean 'ReduceOnPlateau'?"),
        ("CSVLogger", "MetricsFile"),
        ("EarlyStoping", "Did you mean 'EarlyStopping'?"),
    ],
)
def test_hooks_of_other_libraries(name, says):
    with pytest.raises(AttributeError, match=f"no attribute {name!r}") as e:
        getattr(tfloss.hooks, name)
    assert says in str(e.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("max_epochs", "trainer.train(data, epochs=3)"),
        ("callbacks", "hooks=[...]"),
        ("learning_rate", "keras.optimizers.Adam(1e-3)"),
        ("gradient_clip_val", "clip_norm=1.0"),
        ("devices", "tfloss.make_strategy('mirrored', replicas=2)"),
        ("work_dir", "Did you mean 'workdir'?"),
        ("accumulates", "Did you mean 'accumulate'?"),
    ],
)
def test_options_of_other_trainers(name, says):
    with pytest.raises(TypeError) as e:
        trainer(**{name: 1})
    assert f"no option {name!r}" in str(e.value) and says in str(e.value)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: trainer().train(None, validation_data=1), "hooks.Evaluate(data, metrics"),
        (lambda: trainer().train(None, stps=1), "Did you mean 'steps'?"),
        (lambda: trainer().train(), "It takes: data, steps"),
        (lambda: Every(epoch=1), "Did you mean 'epochs'?"),
        (lambda: tfloss.hooks.EarlyStopping("val/x", patients=1), "Did you mean 'patience'?"),
        (lambda: tfloss.export(Line(), "out"), "It takes: model, path, inputs"),
    ],
)
def test_arguments_that_a_function_does_not_take(call, says):
    with pytest.raises(TypeError) as e:
        call()
    assert any(says in note for note in e.value.__notes__)


def test_an_error_of_the_users_own_call_gets_no_advice():
    def metric(batch, predictions):
        return undefined(1, shuffle=2)  # noqa: F821

    with pytest.raises(NameError) as e:
        tfloss.metric(keras.metrics.Mean(), metric).arguments(1, 2)
    assert not getattr(e.value, "__notes__", ())


def test_all_that_is_advised_exists():
    for name in METHODS:
        assert not hasattr(tfloss.Trainer, name)
    assert hint("nothing_like_it", ["steps"], ARGUMENTS) == ""


class Unused(tfloss.Hook):
    """Its methods have names of other libraries."""

    every = Every(steps=1)

    def on_epoch_end(self, epoch, logs): ...

    def after_stp(self, step): ...

    def helper(self): ...


class Untimed(tfloss.Hook):
    """It has no `every`."""

    def after_step(self, step): ...


def test_methods_of_a_hook_that_nobody_calls_are_named():
    with pytest.warns(UserWarning) as caught:
        trainer(hooks=[Unused()])
    texts = [str(one.message) for one in caught]
    assert len(texts) == 2
    assert "never calls Unused.after_stp. Did you mean 'after_step'?" in texts[0]
    assert "never calls Unused.on_epoch_end. A hook has" in texts[1]
    with pytest.warns(UserWarning, match="Untimed.after_step is never called.*Every"):
        trainer().train(rows([1.0], 1), 1, hooks=[Untimed()])


def test_hooks_whose_methods_are_called_are_not_named():
    class Later(tfloss.Hook):
        def after_train(self):
            self.after_step(1)

        def after_step(self, step): ...

    class Timed(Untimed):
        every = Every(steps=2)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer(hooks=[Later(), Timed(), tfloss.hooks.NaNGuard()])
