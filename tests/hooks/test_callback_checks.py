import keras
import pytest

from tfloss.hooks.callback_checks import (
    check_callback,
    check_constant_rates,
    has_batch_methods,
    only_writes,
)


class Best(keras.callbacks.ModelCheckpoint):
    pass


@pytest.mark.parametrize(
    ("callback", "says"),
    [
        (
            keras.callbacks.ModelCheckpoint("a.keras", monitor="val_accuracy"),
            r"ModelCheckpoint would.*hooks.ExportBest\('val/accuracy', path='a.keras', export="
            r".*hooks.SaveCheckpoint\(.*metric='val/accuracy'\)",
        ),
        (Best("a.keras"), "Best, a ModelCheckpoint, would.*hooks.SaveCheckpoint"),
        (keras.callbacks.BackupAndRestore("a"), "BackupAndRestore would.*resumes from its newest"),
        (keras.callbacks.ProgbarLogger(), "tfloss.hooks.Progress"),
        (keras.callbacks.SwapEMAWeights(), r"Trainer\(ema=0.999\)"),
        (keras.callbacks.TerminateOnNaN(), "tfloss.hooks.NaNGuard"),
        (keras.callbacks.EarlyStopping, "got <class.*objects of the classes"),
        ("val_loss", "got 'val_loss'"),
    ],
)
def test_what_is_refused(callback, says):
    with pytest.raises(TypeError, match=says):
        check_callback(callback)


def test_methods_that_are_never_called_are_named():
    class Tests(keras.callbacks.Callback):
        def on_test_end(self, logs=None): ...

    with pytest.warns(UserWarning, match="never calls Tests.on_test_end"):
        check_callback(Tests())


def test_which_callbacks_need_every_batch():
    class Batches(keras.callbacks.Callback):
        def on_batch_end(self, batch, logs=None): ...

    assert has_batch_methods(Batches())
    assert has_batch_methods(keras.callbacks.LambdaCallback(on_train_batch_end=print))
    assert not has_batch_methods(keras.callbacks.LambdaCallback(on_epoch_end=print))
    assert not has_batch_methods(keras.callbacks.TensorBoard())
    assert has_batch_methods(keras.callbacks.TensorBoard(update_freq=5))


def test_the_first_worker_writes():
    assert only_writes(keras.callbacks.CSVLogger("a.csv"))
    assert not only_writes(keras.callbacks.EarlyStopping())


def test_the_group_with_a_schedule_is_named():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    optimizers = {"a": keras.optimizers.SGD(0.1), "b": keras.optimizers.Adam(schedule)}
    with pytest.raises(ValueError, match=r"Sets sets .* of group 'b' \(Adam\) has a schedule"):
        check_constant_rates("Sets", optimizers)
