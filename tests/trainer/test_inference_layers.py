"""Layers that the inference forward uses and the training forward doesn't are found."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss

DATA = tf.data.Dataset.from_tensors({"x": np.ones([4, 5], np.float32)}).repeat()


class Net(keras.Model):
    """`body` is used by both forwards, `own` by inference only; it is built with the model."""

    def __init__(self, built=True, regularizer=None):
        super().__init__(name="net")
        self.body = keras.layers.Dense(4)
        self.own = keras.layers.Dense(2, name="own", kernel_regularizer=regularizer)
        self.built_early = built

    def build(self, shape):
        if self.built_early:
            self.own.build((None, 4))
        self.built = True

    def call(self, batch, training=False):
        hidden = self.body(batch["x"])
        if training:
            return {"size": tf.reduce_mean(hidden**2)}
        return self.own(hidden)  # inference only


def _findings(model, strategy=None):
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        model = model()
        optimizer = keras.optimizers.AdamW(0.1)
    trainer = tfloss.Trainer(model, optimizer, strategy=strategy, default_hooks=False, seed=0)
    with pytest.warns(UserWarning) if not isinstance(model, _Both) else _nothing():
        report = trainer.inspect(DATA)
    return [one for one in report.findings if "reaches" not in one.kind], trainer


class _nothing:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


@pytest.mark.parametrize(("count", "regularizer"), [(1, None), (1, "l2"), (2, None)])
def test_a_layer_of_inference_is_named_with_its_line(replicas, count, regularizer):
    (found,), _ = _findings(lambda: Net(regularizer=regularizer), replicas(count))
    assert found.kind == "Layer that only inference uses" and found.subject == "net/own"
    with open(__file__) as file:
        line = next(i for i, text in enumerate(file, 1) if "# inference only" in text)
    assert found.line == f"{__file__}:{line}, in call"


def test_a_layer_without_weights_is_named_and_stays_without():
    (found,), trainer = _findings(lambda: Net(built=False))
    assert found.kind == "Layer that training doesn't call" and found.subject == "net/own"
    assert not trainer.model.own.built and len(trainer.model.weights) == 2


class _Both(keras.Model):
    def __init__(self):
        super().__init__(name="net")
        self.head = keras.layers.Dense(2)
        self.drop = keras.layers.Dropout(0.5)

    def call(self, batch, training=False):
        y = self.drop(self.head(batch["x"]))
        if training:
            return {"size": tf.reduce_mean(y**2)}
        return y


class _Fails(_Both):
    def call(self, batch, training=False):
        if not training:
            raise ValueError("no labels here")
        return super().call(batch, training=True)


def test_a_model_whose_forwards_agree_has_none():
    assert _findings(_Both)[0] == []


def test_an_inference_forward_that_fails_is_named():
    (found,), _ = _findings(_Fails)
    assert found.kind == "Inference forward that fails"
    assert found.subject == "ValueError: no labels here"
    line = _Fails.call.__code__.co_firstlineno + 2
    assert found.line == f"{__file__}:{line} (in call)"
