"""Keras still passes the training mode on as `tfloss._upstream.training_mode` expects."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfloss import _upstream

pytestmark = pytest.mark.upstream


class Probe(keras.Layer):
    """Keeps the mode of each call."""

    def __init__(self):
        super().__init__()
        self.modes = []

    def call(self, x, training=None):
        self.modes.append(training)
        return x


class Two(keras.Layer):
    """Calls its second layer after the first one, which is in inference mode."""

    def __init__(self):
        super().__init__()
        self.frozen, self.probe = Probe(), Probe()

    def call(self, x):
        return self.probe(self.frozen(x, training=False))


@pytest.mark.promise(49)
def test_the_mode_of_a_sublayer_applies_to_those_after_it():
    layer = Two()
    layer.built = True  # else Keras calls it once more, to build it
    layer(tf.ones([1]), training=True)
    assert layer.frozen.modes == [False] and layer.probe.modes == [False]


@pytest.mark.promise(49)
def test_a_layer_called_outside_of_all_calls_is_in_inference_mode():
    layer = Probe()
    layer(tf.ones([1]))
    assert layer.modes == [None]


@pytest.mark.promise(51)
def test_a_functional_model_overrides_the_mode_of_its_layers():
    inputs, probe = keras.Input([1]), Probe()
    model = keras.Model(inputs, probe(inputs, training=False))
    model(tf.ones([1, 1]), training=True)
    assert probe.modes[-1] is True
    with _upstream.layer_modes(lambda: None):
        model(tf.ones([1, 1]), training=True)
    assert probe.modes[-1] is False
    model(tf.ones([1, 1]), training=True)
    assert probe.modes[-1] is True


@pytest.mark.promise(50)
def test_a_default_that_keras_writes_down_is_not_kept():
    inputs = keras.Input([1])
    dropout, norm = keras.layers.Dropout(0.5), Probe()
    model = keras.Model(inputs, norm(dropout(inputs), training=False))
    assert dropout._inbound_nodes[0].arguments.kwargs == {"training": False}
    with _upstream.layer_modes(lambda: None):
        zeros = (model(tf.ones([1000, 1]), training=True).numpy() == 0).mean()
        assert zeros == pytest.approx(0.5, abs=0.1) and norm.modes[-1] is False
        assert (model(tf.ones([1000, 1]), training=False).numpy() == 1).all()


def test_a_rematerialised_block_is_run_again_in_inference_mode():
    x = tf.constant([[1.0], [2.0], [6.0]])

    class Block(keras.Layer):
        def __init__(self, remat):
            super().__init__()
            self.norm, self.remat = keras.layers.BatchNormalization(), remat
            self.norm.build(x.shape)

        def call(self, x):
            return (tf.recompute_grad(self.norm) if self.remat else self.norm)(x)

    gradients = []
    for remat in (False, True):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(Block(remat)(x, training=True) ** 3)
        gradients.append(tape.gradient(loss, x).numpy())
    assert not np.allclose(*gradients, rtol=0.1)


def test_each_call_has_its_own_mode():
    left = []

    class Calls:
        def enter(self, layer):
            return True

        def leave(self, layer, training):
            left.append((type(layer).__name__, training))

    original, layer, probe = keras.Layer.__call__, Two(), Probe()
    layer.built = True
    with _upstream.layer_modes(Calls):
        layer(tf.ones([1]))
        layer(tf.ones([1]), training=False)
        probe(tf.ones([1]), training=None)
        probe(tf.ones([1]))
    assert keras.Layer.__call__ is original
    assert layer.frozen.modes == [False, False]
    assert layer.probe.modes == [True, False]
    assert probe.modes == [True, True]
    assert left[:3] == [("Probe", False), ("Probe", True), ("Two", True)]
    with _upstream.layer_modes(lambda: None):
        probe(tf.ones([1]))
    probe(tf.ones([1]))
    assert probe.modes[2:] == [None, None]


def test_a_call_that_fails_leaves_no_mode_behind():
    class Fails(keras.Layer):
        def call(self, x):
            raise ZeroDivisionError

    class Calls:
        def enter(self, layer):
            return True

        def leave(self, layer, training): ...

    probe = Probe()
    with _upstream.layer_modes(Calls), pytest.raises(ZeroDivisionError):
        Fails()(tf.ones([1]))
    probe(tf.ones([1]))
    assert probe.modes == [None]


def test_code_can_run_outside_of_the_call_around_it():
    class Around(keras.Layer):
        def __init__(self, probe):
            super().__init__(dtype="mixed_bfloat16")
            self.probe = probe
            self.w = self.add_weight(shape=())

        def call(self, x):
            self.probe(x)
            with _upstream.outside_layer_calls():
                self.probe(x)
                dtypes.append(tf.convert_to_tensor(self.w).dtype)
            self.probe(x)
            dtypes.append(tf.convert_to_tensor(self.w).dtype)
            return x

    probe, dtypes = Probe(), []
    around = Around(probe)
    around.built = True
    around(tf.ones([1]), training=True)
    assert probe.modes == [True, None, True]
    assert dtypes == [tf.float32, tf.bfloat16]
