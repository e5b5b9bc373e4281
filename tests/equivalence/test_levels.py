"""Three levels, and plain Keras, end with the same weights, bit for bit."""

import importlib.util
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss

EXAMPLES = Path(__file__).parents[2] / "examples"


def _plain_loop():
    spec = importlib.util.spec_from_file_location("plain_loop", EXAMPLES / "plain_loop.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class OwnStep(tfloss.TrainStep):
    """The second level: the same algorithm, spelt out."""

    def step(self, batch):
        return self.minimize(lambda b: self.model(b, training=True), batch)


@pytest.mark.parametrize("count", [1, 2])
def test_trainer_own_step_and_plain_loop_agree(count, replicas, tmp_path):
    plain = _plain_loop()

    def fresh():
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(7)
        return replicas(count)

    model, scalars = plain.train(fresh(), steps=100, logdir=str(tmp_path))
    weights = [[v.numpy() for v in model.variables]]
    losses = [{k: v for k, v in scalars.items() if k.startswith("losses/")}]
    for step in (tfloss.TrainStep, OwnStep):
        strategy = fresh()
        with strategy.scope():
            model, optimizer = plain.Regression(), keras.optimizers.Adam(0.05)
        trainer = tfloss.Trainer(
            model, optimizer, strategy=strategy, default_hooks=False, train_step=step
        )
        found = trainer.train(plain.points(), steps=100).losses
        weights.append([v.numpy() for v in model.variables])
        losses.append({f"losses/{k}": v for k, v in found.items()})
    assert losses[0] == losses[1] == losses[2]
    for other in weights[1:]:
        for a, b in zip(weights[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
    assert weights[0][0].item() == pytest.approx(3.0, abs=0.5)


class _AddsLoss(keras.Model):
    """Uses add_loss alone, Dropout and BatchNormalization: it also trains under `fit`."""

    def __init__(self):
        super().__init__(name="net")
        self.blocks = [keras.layers.Dense(8, activation="relu"), keras.layers.Dropout(0.3)]
        self.bn = keras.layers.BatchNormalization()
        self.out = keras.layers.Dense(3)

    def call(self, batch, training=False):
        x = self.blocks[1](self.blocks[0](batch["x"]), training=training)
        logits = self.out(self.bn(x, training=training))
        if training:
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["y"], logits)
            self.add_loss(tf.reduce_mean(loss))
            return None
        return logits


def _classes():
    random = np.random.RandomState(0)
    x, y = random.randn(96, 5).astype(np.float32), random.randint(0, 3, 96)
    return tf.data.Dataset.from_tensor_slices({"x": x, "y": y}).shuffle(96, seed=1).batch(8)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW"])
def test_keras_fit_and_tfloss_end_with_the_same_weights(optimizer):
    models = []
    for way in ("fit", "tfloss"):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(3)
        model, rule = _AddsLoss(), getattr(keras.optimizers, optimizer)(0.01)
        data = _classes()
        if way == "fit":
            model.compile(optimizer=rule, jit_compile=False)
            model.fit(data.repeat(), steps_per_epoch=24, epochs=2, verbose=0)
        else:
            trainer = tfloss.Trainer(model, rule, default_hooks=False, fused_adam=False)
            trainer.train(data.repeat(), steps=48)
        models.append({v.path: v.numpy() for v in model.variables})
    assert models[0].keys() == models[1].keys()
    for path, value in models[0].items():
        np.testing.assert_array_equal(value, models[1][path], err_msg=path)


def test_a_model_that_reports_names_runs_under_fit_too():
    class Model(_AddsLoss):
        def call(self, batch, training=False):
            logits = super().call(batch, training=False)
            if training:
                loss = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["y"], logits)
                tfloss.add_loss(self, ce=tf.reduce_mean(loss))
                tfloss.summary.scalar("a", tf.reduce_mean(loss))
                return None
            return logits

    model = Model()
    model.compile(optimizer="sgd")
    assert np.isfinite(model.fit(_classes(), verbose=0).history["loss"]).all()
