"""A wrong name of a metric is refused before the first step, with the nearest name."""

import warnings

import keras
import pytest
import tensorflow as tf

import tfloss
from tests.toys import Accuracy, Line, rows
from tfloss.hooks import EarlyStopping, Evaluate, Every, ExportBest, ReduceOnPlateau, SaveCheckpoint
from tfloss.hooks.logged_names import LoggedNames, keras_name

TRACED = ["losses/kl", "losses/total", "learning_rate", "norm"]


def accuracy():
    return tfloss.metric(keras.metrics.BinaryAccuracy(), lambda batch, y: (batch["x"], y["y"]))


def evaluate(**options):
    data = rows([1.0, 2.0], 2).take(1)
    return Evaluate(data, {"accuracy": accuracy()}, every=Every(steps=1), **options)


class Own(tfloss.Hook):
    """It may log any name."""


@pytest.mark.parametrize(
    ("name", "before", "traced"),
    [
        ("val/accuracy", False, False),
        ("val/acuracy", True, True),
        ("val/losses/kl", False, False),
        ("val/losses/total", False, False),
        ("val/losses/lk", False, True),  # the losses are not known before the trace
        ("losses/kl", False, False),
        ("losses/lk", False, True),
        ("val_loss", False, True),  # it may be a summary of the model
        ("norm", False, False),
        ("steps_per_second", False, False),
        ("time/hooks_fraction", False, False),
        ("test/accuracy", False, True),
    ],
)
def test_what_nothing_logs(name, before, traced):
    hooks = [evaluate(losses=True)]
    assert LoggedNames(hooks).lacks(name) == before
    assert LoggedNames(hooks, TRACED).lacks(name) == traced


def test_losses_of_an_evaluation_are_not_those_of_a_step_that_the_user_wrote():
    names = LoggedNames([evaluate(losses=True)], TRACED, other_losses=True)
    assert not names.lacks("val/losses/inner")


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("losses/total", "loss"),
        ("losses/rpn/box", "rpn/box"),
        ("norm", "norm"),
        ("val/losses/total", "val_loss"),
        ("val/losses/kl", "val_kl"),
        ("val/accuracy", "val_accuracy"),
        ("a/b/x", "a/b_x"),
    ],
)
def test_names_as_keras_writes_them(tag, name):
    assert keras_name(tag, ["val", "a", "a/b"]) == name


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("val_loss", "val/losses/total"),
        ("val_accuracy", "val/accuracy"),
        ("val_acc", "val/accuracy"),
        ("loss", "losses/total"),
        ("val/acc", "val/accuracy"),
        ("losses/k", "losses/kl"),
    ],
)
def test_the_nearest_name_may_be_written_as_in_keras(name, near):
    names = LoggedNames([evaluate(losses=True)], TRACED)
    assert names.suggestion(name) == f" Did you mean {near!r}?"


def test_the_nearest_name_for_a_callback_of_keras():
    names = LoggedNames([evaluate(losses=True)], TRACED)
    assert names.suggestion("val/accuracy", keras=True) == " Did you mean 'val_accuracy'?"


def early(name):
    return EarlyStopping(name, patience=1, mode="min")


@pytest.mark.parametrize(
    ("make", "name", "near"),
    [
        (early, "losses/men", "losses/mean"),
        (early, "val_loss", "val/losses/total"),
        (early, "val/losses/men", "val/losses/mean"),
        (early, "nrm", "norm"),
        (lambda name: ExportBest(name, "min"), "val/acuracy", "val/accuracy"),
        (lambda name: ExportBest(name, "min"), "val_accuracy", "val/accuracy"),
        (lambda name: ReduceOnPlateau(name, mode="min"), "val_losses/total", "val/losses/total"),
        (
            lambda name: SaveCheckpoint(Every(steps=1), keep_best=1, metric=name, mode="min"),
            "loss",
            "losses/total",
        ),
        (keras.callbacks.EarlyStopping, "val_acc", "val_accuracy"),
        (keras.callbacks.ReduceLROnPlateau, "val/losses/total", "val_loss"),
    ],
)
def test_it_is_refused_before_the_first_step(make, name, near, tmp_path):
    def report(model, batch, y):
        tfloss.summary.scalar("norm", tf.reduce_mean(y**2))
        return {"mean": tf.reduce_mean(y)}

    hook = make(name)
    model = Line(report)
    trainer = tfloss.Trainer(model, keras.optimizers.SGD(0.1), workdir=tmp_path, jit=False)
    with pytest.raises(ValueError) as e:
        data, hooks = rows([1.0, 2.0], 2), [evaluate(losses=True), hook]
        trainer.train(data, 4, hooks=hooks, steps_per_epoch=2)
    assert f"{type(hook).__name__} monitors {name!r}, which no" in str(e.value)
    assert f"Did you mean {near!r}?" in str(e.value)
    assert float(model.w) == 1.0 and trainer.step == 0
    assert not list((tmp_path / "checkpoints").glob("*"))


@pytest.mark.parametrize("replica_count", [1, 2])
def test_names_that_are_logged_are_accepted(replica_count, replicas, tmp_path):
    def report(model, batch, y):
        tfloss.summary.scalar("norm", tf.reduce_mean(y**2))
        tfloss.summary.scalar("often", tf.reduce_mean(y**2), every_step=True)
        return {"mean": tf.reduce_mean(y)}

    names = ["losses/mean", "losses/total", "norm", "often", "learning_rate", "val/accuracy"]
    names += ["val/losses/mean", "val/losses/total", "weighted_losses/mean", "coco/map"]
    callbacks = ["loss", "mean", "norm", "val_loss", "val_mean", "val_accuracy"]
    hooks = [
        evaluate(losses=True),
        Evaluate(rows([1.0, 2.0], 2).take(1), {"map": Accuracy()}, name="coco"),
        *(EarlyStopping(name, patience=9, mode="min") for name in names),
        *(keras.callbacks.EarlyStopping(name, patience=9, mode="min") for name in callbacks),
    ]
    strategy = replicas(replica_count)
    with strategy.scope():
        model, optimizer = Line(report), keras.optimizers.SGD(0.1)
    trainer = tfloss.Trainer(
        model,
        optimizer,
        strategy=strategy,
        hooks=hooks,
        loss_weights={"mean": 2.0},
        log_every=1,
        default_hooks=False,
        jit=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert trainer.train(rows([1.0, 2.0], 2), 2, steps_per_epoch=1).step == 2


def test_a_run_with_a_hook_of_the_user_is_warned_of_a_near_name_before_the_first_step():
    model = Line()
    trainer = tfloss.Trainer(model, keras.optimizers.SGD(0.1), default_hooks=False, jit=False)
    seen = []

    class First(tfloss.Hook):
        every = Every(steps=1)

        def after_step(self, step):
            seen.append(len(caught))

    with pytest.warns(
        UserWarning, match="'losses/men', which nothing.*mean 'losses/mean'"
    ) as caught:
        trainer.train(rows([1.0, 2.0], 2), 2, hooks=[First(), early("losses/men"), early("mine")])
    assert seen[0] == 1


def test_a_metric_that_names_its_results_only_has_likely_names():
    net = keras.Sequential([keras.Input([1]), keras.layers.Dense(1)])
    net.compile("sgd", "mse", metrics=["mae"])
    model = tfloss.adapters.from_compiled(net)
    data = tf.data.Dataset.from_tensors((tf.ones([2, 1]), tf.ones([2, 1])))
    hooks = [Evaluate(data), EarlyStopping("val/maee", patience=1, mode="min")]
    trainer = tfloss.Trainer(model, net.optimizer, default_hooks=False, jit=False)
    with pytest.warns(UserWarning, match="'val/maee'.*Did you mean 'val/mae'"):
        trainer.train(data.repeat(), 1, hooks=hooks)
