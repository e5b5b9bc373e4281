"""Epochs are passes over finite data; the rest is as with steps."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.toys import Line
from tfloss.hooks import Every, Hook, SaveCheckpoint

QUIET = {"default_hooks": False, "jit": False}


class Seen(Hook):
    """Notes which x each step was trained on: the model reports it as a loss."""

    def __init__(self):
        self.found = []

    def on_log(self, step, scalars, summaries):
        self.found.append((step, round(scalars["losses/x"])))


class Epochs(Hook):
    def __init__(self):
        self.every, self.found = Every(epochs=1), []

    def after_step(self, step):
        self.found.append(step)


class Stop(Hook):
    def __init__(self, at):
        self.every = Every(steps=at)

    def after_step(self, step):
        self.trainer.stop("test")


def numbers(count, shuffle=False):
    data = tf.data.Dataset.from_tensor_slices({"x": np.arange(1.0, count + 1, dtype=np.float32)})
    return data.shuffle(count, seed=3).batch(1) if shuffle else data.batch(1)


def trained(data, *, hooks=(), workdir=None, trainer_options=None, **options):
    keras.utils.set_random_seed(0)
    model = Line(lambda model, batch, y: {"x": tf.reduce_mean(batch["x"] + 0.0 * y)})
    seen, epochs = Seen(), Epochs()
    trainer = tfloss.Trainer(
        model, keras.optimizers.SGD(0.0), hooks=[seen, epochs, *hooks], workdir=workdir,
        log_every=1, **QUIET, **(trainer_options or {}),
    )  # fmt: skip
    result = trainer.train(data, **options)
    return [x for _, x in seen.found], epochs.found, result.step, trainer


def test_each_epoch_is_a_pass():
    seen, ends, step, trainer = trained(numbers(3), epochs=2)
    assert seen == [1, 2, 3, 1, 2, 3] and ends == [3, 6] and step == 6
    assert trainer.run.steps_per_epoch == 3.0


def test_it_is_a_repeated_data_set_with_steps():
    shuffled = trained(numbers(5, shuffle=True), epochs=3)[:3]
    assert shuffled == trained(numbers(5, shuffle=True).repeat(), steps=15, steps_per_epoch=5)[:3]
    assert shuffled[0][:5] != shuffled[0][5:10] and sorted(shuffled[0][5:10]) == [1, 2, 3, 4, 5]


def test_a_later_call_continues_in_the_same_data():
    data = numbers(4)
    seen, _, _, trainer = trained(data, epochs=1.5)
    assert seen == [1, 2, 3, 4, 1, 2]
    assert trainer.train(data, epochs=2).step == 8
    assert [x for _, x in trainer.hooks[0].found] == [1, 2, 3, 4, 1, 2, 3, 4]
    assert trainer.train(data, epochs=2).step == 8  # already reached


def test_a_stopped_run_continues_in_the_middle_of_an_epoch(tmp_path):
    whole, *_ = trained(numbers(5, shuffle=True), epochs=3)
    save = SaveCheckpoint(Every(steps=100))
    first, *_ = trained(numbers(5, shuffle=True), hooks=[Stop(7), save], workdir=tmp_path, epochs=3)
    second, ends, *_ = trained(numbers(5, shuffle=True), hooks=[save], workdir=tmp_path, epochs=3)
    assert first + second == whole and len(first) == 7 and ends == [10, 15]


def test_a_source_and_a_function():
    source = tfloss.data.Source({"x": np.float32([1, 2, 3])}, batch_size=2, shuffle=False)
    _, ends, step, _ = trained(source, epochs=3)
    assert step == 5 and ends == [2, 3, 5]  # 9 examples are 4.5 batches
    seen, *_ = trained(lambda context: numbers(2), epochs=2)
    assert seen == [1, 2, 1, 2]


def test_a_step_may_take_several_batches():
    seen, ends, step, _ = trained(numbers(3), epochs=2, trainer_options={"accumulate": 2})
    assert step == 3 and ends == [2, 3]


def test_the_length_may_be_given():
    unknown = numbers(4).filter(lambda one: True)
    seen, ends, *_ = trained(unknown, epochs=1.5, steps_per_epoch=4)
    assert seen == [1, 2, 3, 4, 1, 2] and ends == [4]
    assert trained(numbers(3).repeat(), epochs=2, steps_per_epoch=2)[0] == [1, 2, 3, 1]


@pytest.mark.parametrize(
    ("data", "options", "says"),
    [
        (numbers(3), {}, "steps=... or epochs=..., and got neither"),
        (numbers(3), {"steps": 3, "epochs": 1}, "got both"),
        (numbers(3), {"epochs": 0}, "epochs must be positive"),
        (numbers(3), {"epochs": "3"}, "epochs must be a number, got '3'"),
        (numbers(3).repeat(), {"epochs": 1}, "repeats for ever. Leave out .repeat"),
        (
            numbers(3).filter(lambda one: True),
            {"epochs": 1},
            "doesn't know its length. Give steps_",
        ),
    ],
)
def test_what_is_refused(data, options, says):
    with pytest.raises(ValueError, match=says):
        trained(data, **options)


def test_what_is_no_data_set_is_refused_as_such():
    with pytest.raises(tfloss.errors.DataError, match="got int"):
        trained(5, epochs=1)


def test_callbacks_see_the_epochs_of_fit():
    x = np.arange(1.0, 8.0, dtype=np.float32).reshape(7, 1) / 7
    data = tf.data.Dataset.from_tensor_slices((x, 3 * x)).batch(1)

    def net():
        return keras.Sequential(
            [keras.Input([1]), keras.layers.Dense(1, kernel_initializer="ones")]
        )

    fit, ours, model = keras.callbacks.History(), keras.callbacks.History(), net()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(data, epochs=3, callbacks=[fit], verbose=0)
    trainer = tfloss.Trainer(
        tfloss.adapters.supervised(net(), "mse"), keras.optimizers.SGD(0.1), hooks=[ours], **QUIET
    )
    trainer.train(data, epochs=3)
    assert ours.epoch == fit.epoch and ours.params["epochs"] == 3 and ours.params["steps"] == 7
    assert ours.history["loss"] == pytest.approx(fit.history["loss"], rel=1e-5)
