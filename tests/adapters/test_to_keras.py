"""fit, evaluate, predict and saving. tests/adapters/test_identity.py compares the training."""

import traceback

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.adapters.test_identity import _DATA, Good
from tfloss.adapters import supervised, to_keras
from tfloss.errors import LossError, ModelError


def _fitted(**options):
    net = to_keras(Good(), **options)
    net.compile(keras.optimizers.Adam(0.01), jit_compile=False)
    return net, net.fit(_DATA, validation_data=_DATA, epochs=2, verbose=0).history


def test_the_history_has_each_loss_by_its_name():
    net, history = _fitted()
    names = {"loss", "square", "abs", "good", "regularization"}
    assert set(history) == names | {f"val_{name}" for name in names}
    before = [v.numpy() for v in net.model.variables]
    found = net.evaluate(_DATA, verbose=0, return_dict=True)
    trainer = tfloss.Trainer(net.model, keras.optimizers.SGD(0.1), default_hooks=False)
    expected = trainer.evaluate(_DATA, losses=True)
    for name in names - {"loss"}:
        assert found[name] == pytest.approx(expected[f"losses/{name}"], rel=1e-5)
    assert found["loss"] == pytest.approx(expected["losses/total"], rel=1e-5)
    for one, other in zip(before, net.model.variables, strict=True):
        np.testing.assert_array_equal(one, other.numpy())


def test_a_saved_model_continues_as_if_it_had_not_been_saved(tmp_path):
    net, _ = _fitted(loss_weights={"abs": 3.0})
    net.save(tmp_path / "net.keras")
    loaded = keras.models.load_model(tmp_path / "net.keras")
    np.testing.assert_array_equal(net.predict(_DATA, verbose=0), loaded.predict(_DATA, verbose=0))
    seeds = [one.model.drop.seed_generator.state for one in (net, loaded)]
    seeds[1].assign(seeds[0].numpy())  # Keras's files don't hold them
    for one in (net, loaded):
        one.fit(_DATA, verbose=0)
    for one, other in zip(net.variables, loaded.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_arrays_are_batches_and_losses_have_weights():
    x, y = np.float32([[1.0], [2.0]]), np.float32([[0.0], [0.0]])

    def fitted(data, **options):
        layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
        net = to_keras(supervised(keras.Sequential([layer]), "mse"), **options)
        net.compile(keras.optimizers.SGD(0.1), jit_compile=False)
        history = net.fit(*data, batch_size=2, verbose=0).history
        return history, net.model.predictor.get_weights()[0][0, 0]

    history, w = fitted((x, y))
    assert (history["loss"], history["mean_squared_error"]) == ([2.5], [2.5])
    assert w == pytest.approx(1 - 0.1 * 5)
    history, w = fitted((x, y), loss_weights={"mean*": 0.5})
    assert (history["loss"], history["mean_squared_error"]) == ([1.25], [2.5])
    assert w == pytest.approx(1 - 0.05 * 5)
    with pytest.raises(LossError, match="loss_weights.'none'. matches no loss"):
        fitted((x, y), loss_weights={"none": 0.5})


def test_what_only_another_trainer_can_do_is_refused(replicas):
    for options in ({"loss": "mse"}, {"metrics": ["mae"]}, {"loss_weights": {"square": 2.0}}):
        net = to_keras(Good())
        net.compile("adam", **options)
        with pytest.raises(ValueError, match="reports its losses itself, so leave it out"):
            net.fit(_DATA, verbose=0)
    with replicas(2).scope(), pytest.raises(ModelError, match="On several, use tfloss.Trainer"):
        to_keras(Good())


def test_an_error_of_the_model_is_short():
    class Failing(keras.Model):
        def call(self, batch, training=False):
            return {"loss": tf.reduce_mean(batch["x"])}["other"]

    wrapped = tfloss.adapters.to_keras(Failing())
    wrapped.compile("sgd")
    data = tf.data.Dataset.from_tensors({"x": tf.zeros([4, 1])})
    for call in (wrapped.fit, wrapped.evaluate):
        with pytest.raises(KeyError) as e:
            call(data, verbose=0)
        text = "".join(traceback.format_exception(e.value))
        assert "\x1b" not in text and "site-packages" not in text, text
        assert "KeyError: 'other'" in text and text.count("File ") == 2
