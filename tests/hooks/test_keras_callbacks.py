"""Keras callbacks see what `fit` shows them, and survive a restart."""

import csv

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.toys import Line
from tfloss.hooks import Evaluate, Every, Hook, KerasCallbacks, SaveCheckpoint

X = np.arange(1.0, 13.0, dtype=np.float32).reshape(12, 1) / 12
Y = 3 * X
DATA = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)  # three steps
QUIET = {"default_hooks": False, "jit": False}


class Diary(keras.callbacks.Callback):
    """Notes each call, and the rate at that time."""

    def __init__(self, batches=False):
        super().__init__()
        self.lines = []
        if batches:
            self.on_train_batch_begin = lambda batch, logs=None: self.note("batch begins", batch)
            self.on_train_batch_end = lambda batch, logs=None: self.note("batch", batch, logs)

    def note(self, *line):
        self.lines.append(line)

    def on_train_begin(self, logs=None):
        self.note("begins", dict(self.params))

    def on_epoch_begin(self, epoch, logs=None):
        rate = float(np.asarray(self.model.optimizer.learning_rate))
        self.note("epoch begins", epoch, round(rate, 6))

    def on_epoch_end(self, epoch, logs=None):
        self.note("epoch", epoch, dict(logs))

    def on_train_end(self, logs=None):
        self.note("ends", logs)


def net():
    return keras.Sequential([keras.Input([1]), keras.layers.Dense(1, kernel_initializer="ones")])


def by_fit(callbacks, epochs, **options):
    model = net()
    model.compile(keras.optimizers.SGD(0.5), "mse")
    model.fit(DATA, epochs=epochs, callbacks=callbacks, verbose=0, **options)
    return model


def by_trainer(callbacks, epochs, hooks=(), **options):
    model = net()
    trainer = tfloss.Trainer(
        tfloss.adapters.supervised(model, "mse"),
        keras.optimizers.SGD(0.5),
        hooks=[*callbacks, *hooks],
        **{**QUIET, **options},
    )
    result = trainer.train(DATA.repeat(), 3 * epochs, steps_per_epoch=3)
    return model, result


def without_losses_of_one_output(lines):
    """`fit` has no loss per output for a model with one."""
    return [
        tuple(
            {k: v for k, v in part.items() if "mean_squared" not in k}
            if isinstance(part, dict)
            else part
            for part in line
        )
        for line in lines
    ]


def close(found, expected):
    assert [line[0] for line in found] == [line[0] for line in expected]
    for one, other in zip(found, expected, strict=True):
        approximately = [pytest.approx(x, rel=1e-5) if isinstance(x, dict) else x for x in other]
        assert list(one) == approximately


@pytest.mark.parametrize("batches", [False, True])
def test_the_calls_and_logs_are_those_of_fit(batches):
    """The rate is changed by two callbacks, and a third one sees `val_loss`."""

    def callbacks():
        return [
            keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.9),
            keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1.0),
            Diary(batches),
        ]

    fit, ours = callbacks(), callbacks()
    expected = by_fit(fit, 4, validation_data=DATA)
    evaluate = Evaluate(DATA, {}, every=Every(epochs=1), losses=True)
    model, _ = by_trainer(ours, 4, [evaluate])  # it stands after the callbacks
    lines = without_losses_of_one_output(ours[-1].lines)
    if batches:
        assert lines[2:5] == [("batch begins", 0), ("batch", 0, lines[3][2]), ("batch begins", 1)]
    fit[-1].lines[0][1]["verbose"] = 1
    close(lines, fit[-1].lines)
    np.testing.assert_allclose(model.get_weights()[0], expected.get_weights()[0], rtol=1e-6)


def test_early_stopping_with_the_best_weights():
    options = {"patience": 2, "min_delta": 10.0, "restore_best_weights": True}
    stop = keras.callbacks.EarlyStopping("loss", **options)
    expected = by_fit([stop], 9)
    model, result = by_trainer([keras.callbacks.EarlyStopping("loss", **options)], 9)
    assert result.step == 9
    assert result.reason == "the Keras callback EarlyStopping stopped it in epoch 3"
    np.testing.assert_allclose(model.get_weights()[0], expected.get_weights()[0], rtol=1e-6)


def test_a_callback_stops_in_the_middle_of_an_epoch():
    diary = Diary()

    def stop(batch, logs):
        diary.model.stop_training = batch == 1

    callbacks = [keras.callbacks.LambdaCallback(on_train_batch_end=stop), diary]
    model, result = by_trainer(callbacks, 4)
    assert result.step == 2
    assert [line[0] for line in diary.lines] == ["begins", "epoch begins", "epoch", "ends"]
    assert not hasattr(model, "stop_training") and not hasattr(model, "optimizer")


def test_a_csv_file_has_the_losses_by_name_and_means_over_the_epoch(tmp_path):
    """w falls by 0.3 * mean(x) a step, where mean(x) is 1.5 and 3.5 in turn."""

    def report(model, batch, y):
        return {"near": tf.reduce_mean(y), "rpn": {"box": 2 * tf.reduce_mean(y)}}

    x = tf.data.Dataset.from_tensor_slices({"x": np.float32([1, 2, 3, 4])}).batch(2)
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    trainer = tfloss.Trainer(
        Line(report), keras.optimizers.SGD(0.1), hooks=[log], log_every=3, **QUIET
    )
    trainer.train(x.repeat(), 5, steps_per_epoch=2)
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [row["epoch"] for row in rows] == ["0", "1"]  # the third one is not complete
    near = [1.5 * 1, 3.5 * 0.55, 1.5 * -0.5, 3.5 * -0.95]
    assert [float(row["near"]) for row in rows] == pytest.approx(
        [np.mean(near[:2]), np.mean(near[2:])], rel=1e-5
    )
    assert float(rows[1]["loss"]) == pytest.approx(3 * np.mean(near[2:]), rel=1e-5)
    assert float(rows[1]["rpn/box"]) == pytest.approx(2 * np.mean(near[2:]), rel=1e-5)


class Killed(Hook):
    def __init__(self, at):
        self.every = Every(steps=at)

    def after_step(self, step):
        raise KeyboardInterrupt


class Plateau(keras.callbacks.Callback):
    """Counts in attributes of its own."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self.shape = None

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append((epoch, round(logs["loss"], 4)))
        self.shape = np.array([epoch])


def resumable(folder, kill_at=None):
    """Trains 6 epochs; returns what is left of it. A checkpoint is saved in mid-epoch, at 7."""
    keras.utils.clear_session()
    own = Plateau()
    callbacks = [
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.9),
        keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=2, min_delta=0.5),
        keras.callbacks.EarlyStopping("loss", patience=4, min_delta=0.5, restore_best_weights=True),
        keras.callbacks.CSVLogger(folder / "log.csv"),
        keras.callbacks.TensorBoard(folder / "board"),
        own,
    ]
    hooks = [SaveCheckpoint(Every(steps=7))] + ([Killed(kill_at)] if kill_at else [])
    model, result = by_trainer(callbacks, 6, hooks, workdir=folder / "run")
    return {
        "weights": model.get_weights()[0].tolist(),
        "step": result.step,
        "reason": result.reason,
        "csv": (folder / "log.csv").read_text(),
        "own": own.seen,
        "board": board(folder / "board"),
    }


def board(folder):
    found = []
    for path in sorted((folder / "train").glob("events*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            found += [(v.tag, event.step) for v in event.summary.value if "loss" in v.tag]
    return sorted(found)


def test_a_killed_run_continues_what_callbacks_count_and_write(tmp_path, monkeypatch):
    whole = resumable(tmp_path / "whole")
    assert whole["step"] == 15 and "EarlyStopping" in whole["reason"]
    with pytest.raises(KeyboardInterrupt):
        # The kill saves no checkpoint, so epoch 3 is trained twice.
        with monkeypatch.context() as context:
            context.setattr(SaveCheckpoint, "after_train", lambda self: None)
            resumable(tmp_path / "killed", kill_at=11)
    assert "\n2," in (tmp_path / "killed" / "log.csv").read_text()
    assert resumable(tmp_path / "killed") == whole
    again = resumable(tmp_path / "killed")  # it had stopped, and stays so
    assert again["step"] == 15 and again["weights"] == whole["weights"]
    assert again["csv"] == whole["csv"]


def test_a_changed_attribute_that_no_checkpoint_can_hold_is_named(tmp_path):
    class Keeps(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.tensor = tf.constant(1.0)

    with pytest.warns(UserWarning, match=r"can't hold Keeps.tensor \(EagerTensor\)"):
        by_trainer([Keeps()], 1, [SaveCheckpoint(Every(steps=3))], workdir=tmp_path)


def test_groups_have_several_optimizers():
    class TwoNets(keras.Model):
        def __init__(self):
            super().__init__()
            self.a, self.b = keras.layers.Dense(1), keras.layers.Dense(1)

        def call(self, batch, training=False):
            loss = lambda layer: tf.reduce_mean(tf.square(layer(batch["x"]) - 1.0))  # noqa: E731
            return {"a": {"mse": loss(self.a)}, "b": {"mse": loss(self.b)}}

    model, diary = TwoNets(), keras.callbacks.History()
    groups = {
        "a": (keras.optimizers.SGD(0.1), model.a),
        "b": (keras.optimizers.SGD(0.2), model.b),
    }
    halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    data = tf.data.Dataset.from_tensors({"x": np.ones([2, 1], np.float32)}).repeat()
    trainer = tfloss.Trainer(model, groups, hooks=[halve, diary], **QUIET)
    trainer.train(data, 2, steps_per_epoch=1)
    assert diary.history["learning_rate_a"] == pytest.approx([0.05, 0.025])
    assert diary.history["learning_rate_b"] == pytest.approx([0.1, 0.05])
    assert float(groups["b"][0].learning_rate) == pytest.approx(0.05)


def test_a_metric_of_an_evaluation_has_a_direction():
    """Keras looks for it in a compiled model."""
    accuracy = tfloss.metric(keras.metrics.MeanAbsoluteError(), lambda batch, y: (batch[1], y))
    stop = keras.callbacks.EarlyStopping("val_error", patience=1, min_delta=100.0)
    evaluate = Evaluate(DATA, {"error": accuracy}, every=Every(epochs=1))
    _, result = by_trainer([stop], 5, [evaluate])
    assert result.step == 6

    mean = tfloss.metric(keras.metrics.Mean(), lambda batch, y: (y,))
    stop = keras.callbacks.EarlyStopping("val_mean")
    with pytest.raises(ValueError, match="EarlyStopping monitors 'val_mean'.*mode='min'"):
        by_trainer([stop], 5, [Evaluate(DATA, {"mean": mean}, every=Every(epochs=1))])


def test_a_rate_that_follows_a_schedule_is_not_set():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    trainer = tfloss.Trainer(
        tfloss.adapters.supervised(net(), "mse"),
        keras.optimizers.SGD(schedule),
        hooks=[keras.callbacks.ReduceLROnPlateau("loss")],
        **QUIET,
    )
    with pytest.raises(ValueError, match=r"ReduceLROnPlateau sets the learning rate.*\(SGD\)"):
        trainer.train(DATA, 3)


def test_an_epoch_may_be_a_number_of_steps():
    diary = Diary()
    trainer = tfloss.Trainer(
        tfloss.adapters.supervised(net(), "mse"),
        keras.optimizers.SGD(0.1),
        hooks=[KerasCallbacks(diary, epoch=Every(steps=2))],
        **QUIET,
    )
    trainer.train(DATA.repeat(), 4)
    assert [line[:2] for line in diary.lines if line[0] == "epoch"] == [("epoch", 0), ("epoch", 1)]
    with pytest.raises(ValueError, match=r"epoch=Every\(seconds=3\)"):
        KerasCallbacks(diary, epoch=Every(seconds=3))


def test_two_replicas_give_the_logs_of_one(replicas):
    def history(count):
        keras.utils.set_random_seed(0)
        strategy, found = replicas(count), keras.callbacks.History()
        with strategy.scope():
            model, optimizer = net(), keras.optimizers.SGD(0.5)
            model = tfloss.adapters.supervised(model, "mse")
        reduce = keras.callbacks.ReduceLROnPlateau("loss", factor=0.1, patience=1, min_delta=9.0)
        trainer = tfloss.Trainer(
            model, optimizer, strategy=strategy, hooks=[reduce, found], **QUIET
        )
        trainer.train(DATA.repeat(), 9, steps_per_epoch=3)
        return found.history

    one, two = history(1), history(2)
    assert two.keys() == one.keys()
    for name, values in one.items():
        assert two[name] == pytest.approx(values, rel=1e-5)
    assert one["learning_rate"] == pytest.approx([0.5, 0.5, 0.05])


def test_callbacks_in_the_compiled_loop():
    graph, loop = keras.callbacks.History(), keras.callbacks.History()
    by_trainer([graph], 4)
    by_trainer([loop], 4, jit="loop")
    assert loop.history["loss"] == pytest.approx(graph.history["loss"], rel=1e-5)
