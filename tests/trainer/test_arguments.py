"""A trainer takes a step class or an instance, and refuses what contradicts it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.toys import Line, rows
from tfloss.hooks import KerasCallbacks, NaNGuard, Progress
from tfloss.trainer.arguments import checked_hooks

DATA = rows(np.ones(8), 4)


class Scaled(tfloss.TrainStep):
    """A step with an argument of its own."""

    def __init__(self, model, optimizer, factor, **options):
        super().__init__(model, optimizer, **options)
        self.factor = factor

    def forward(self, batch):
        losses = self.model(batch, training=True)
        return {name: self.factor * value for name, value in losses.items()}


def trained(steps=3, **options):
    trainer = tfloss.Trainer(**options, default_hooks=False, jit=False)
    result = trainer.train(DATA, steps)
    return trainer, float(trainer.model.w.numpy()), result


def test_a_step_may_be_an_instance_with_arguments_of_its_own():
    sgd = keras.optimizers.SGD(0.1)
    step = Scaled(Line(), sgd, factor=3.0, clip_norm=10.0)
    trainer, w, result = trained(train_step=step)
    # The loss is 3 w, with gradient 3: w = 1 - 3 steps * 0.1 * 3. A loss is that before its update.
    assert w == pytest.approx(0.1)
    assert result.losses["mean"] == pytest.approx(3 * 0.4)
    assert trainer.train_step is step and trainer.model is step.model
    assert trainer.optimizer is sgd


def test_a_class_gets_the_options_of_the_step():
    trainer, w, _ = trained(
        model=Line(), optimizer=keras.optimizers.SGD(0.1), clip_norm=0.5, accumulate=2
    )
    assert w == pytest.approx(1 - 3 * 0.1 * 0.5)  # the gradient 1 is clipped to 0.5
    assert trainer.train_step.accumulate == 2


def test_the_optimizers_of_groups_are_given_by_name():
    model = Line()
    groups = {"mean": (keras.optimizers.SGD(0.1), [model.w])}
    step = tfloss.TrainStep(model, groups)
    assert trained(train_step=step)[0].optimizer is groups["mean"][0]


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"optimizer": keras.optimizers.SGD(0.1)}, "optimizer"),
        ({"model": Line()}, "model"),
        ({"clip_norm": 1.0, "ema": 0.9}, "clip_norm, ema"),
    ],
)
def test_what_an_instance_has_is_not_given_twice(extra, named):
    step = Scaled(Line(), keras.optimizers.SGD(0.1), factor=1.0)
    with pytest.raises(ValueError, match=rf"Give {named} to Scaled\(\.\.\.\)"):
        tfloss.Trainer(**extra, train_step=step)


def test_without_an_instance_a_model_is_needed():
    with pytest.raises(ValueError, match="model must be a keras.Model, got NoneType"):
        tfloss.Trainer(optimizer=keras.optimizers.SGD(0.1))


def test_an_instance_brings_its_strategy(replicas):
    strategy = replicas(2)
    with strategy.scope():
        step = Scaled(Line(), keras.optimizers.SGD(0.1), factor=1.0)
    trainer, w, _ = trained(train_step=step)
    assert trainer.strategy is strategy
    assert w == pytest.approx(0.7)
    assert tf.distribute.get_strategy() is not strategy


class _Generator(keras.Model):
    """Its training needs pictures, and its inference needs latents."""

    def __init__(self):
        super().__init__(name="generator")
        self.scale = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")

    def call(self, batch, training=False):
        if training:
            return {"error": tf.reduce_mean(self.scale(batch["picture"]))}
        return self.scale(batch["latent"])


def test_evaluate_runs_each_forward_only_if_it_is_needed():
    pictures, latents = (
        tf.data.Dataset.from_tensor_slices({key: np.float32([[1], [2], [6]])}).batch(2)
        for key in ("picture", "latent")
    )
    mean = {"mean": tfloss.metric(keras.metrics.Mean(), lambda batch, drawn: drawn)}
    trainer = tfloss.Trainer(_Generator(), keras.optimizers.SGD(0.0), default_hooks=False)
    with pytest.raises(KeyError, match="picture") as caught:
        trainer.evaluate(latents, mean)
    assert "builds the model by its training forward" in caught.value.__notes__[-1]
    losses = {"losses/error": 3.0, "losses/total": 3.0}
    assert trainer.evaluate(pictures, losses=True) == losses
    assert trainer.evaluate(latents, mean) == {"mean": 3.0}


def test_bare_callbacks_become_one_hook_where_the_first_one_stands():
    history, stop = keras.callbacks.History(), keras.callbacks.EarlyStopping()
    before, after = NaNGuard(), Progress()
    found = checked_hooks([before, history, after, stop])
    assert [type(hook) for hook in found] == [NaNGuard, KerasCallbacks, Progress]
    assert found[1].callbacks == [history, stop]
