"""A forward context belongs to one thread and one forward pass."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.toys import Line, rows, run
from tfloss import summary
from tfloss.errors import SummaryError
from tfloss.forward.context import (
    as_in_fit,
    current_context,
    current_step,
    forward_context,
    plain_forward,
)
from tfloss.step.train_step import TrainStep

STEP = tf.constant(7, tf.int64)


def test_contexts_nest_and_end():
    assert current_context() is None and current_step().numpy() == 0
    with forward_context(STEP, recording=True) as outer:
        assert current_context() is outer and current_step().numpy() == 7
        with forward_context(STEP + 1, recording=False) as inner:
            assert current_context() is inner and current_step().numpy() == 8
        assert current_context() is outer
    assert current_context() is None


def test_another_thread_does_not_see_the_context():
    seen = []
    with forward_context(STEP, recording=True):
        thread = threading.Thread(target=lambda: seen.append(current_context()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_losses_and_summaries_are_collected_with_their_names():
    layer = keras.layers.Dense(1, activity_regularizer="l2", name="dense")
    with forward_context(STEP, recording=True) as context:
        layer(tf.ones([2, 1]))
        with summary.scope("outer"), summary.scope("inner"):
            summary.scalar("value", 1.0)
    assert [(one.layer.name, one.name) for one in context.losses] == [("dense", None)]
    assert list(context.summaries) == ["outer/inner/value"]
    assert not context.dropped


def test_a_context_that_does_not_record_drops_summaries_and_knows_it():
    with forward_context(STEP, recording=False) as context:
        assert not context.dropped
        summary.histogram("values", [1.0])
    assert context.summaries == {} and context.dropped


def test_a_recorded_drawing_is_not_dropped():
    with forward_context(STEP, recording=True) as context:
        summary.draw("drawing", lambda *arrays: arrays[0], tf.zeros([1]), tf.zeros([1]))
    assert [one.name for one in context.summaries.values()] == ["drawing", "drawing"]
    assert not context.dropped


def test_a_silent_context_reports_nothing_and_keeps_the_step():
    layer = keras.layers.Dense(1, activity_regularizer="l2")
    with forward_context(STEP, recording=True) as context:
        with context.silent():
            layer(tf.ones([2, 1]))
            summary.scalar("value", 1.0)
            assert current_step().numpy() == 7
    assert context.losses == [] and context.summaries == {}
    assert len(layer.losses) == 1  # Keras got it


def test_as_in_fit_a_call_drops_what_the_layer_added_before():
    class Adds(keras.Layer):
        def call(self, x, training=None):
            self.add_loss(x)
            modes.append(training)
            return x

    layer, modes = Adds(), []
    with forward_context(STEP, recording=True) as context:
        layer(tf.constant(1.0))
        layer(tf.constant(2.0))
        assert [float(one.value) for one in context.losses] == [1.0, 2.0]
        with as_in_fit():
            layer(tf.constant(3.0))
        assert [float(one.value) for one in context.losses] == [3.0]
        layer(tf.constant(4.0))
        assert [float(one.value) for one in context.losses] == [3.0, 4.0]
    assert modes == [True, True, None, True]


def test_a_backward_pass_sees_the_step_again():
    with forward_context(STEP, recording=True) as context:
        pass
    with context.backward():
        assert current_context() is context and not context.collecting
    assert current_context() is None and context.collecting


def test_a_name_can_be_used_once():
    with forward_context(STEP, recording=False):
        summary.scalar("value", 1.0)
        with pytest.raises(SummaryError, match="'value' is recorded twice in one step"):
            summary.scalar("value", 2.0)


# The training mode of layers. BatchNormalization moves its mean by half of the way, from 0 to that
# of the batch, where it is in training mode.

X = np.float32([[1.0], [3.0], [2.0], [6.0]])  # mean 3; of the halves 2 and 4


def norm(name):
    return keras.layers.BatchNormalization(name=name, momentum=0.5)


class Modes(keras.Model):
    """Layers whose calls do and don't say their mode; `judge` is not the model's `call`."""

    def __init__(self, kind):
        super().__init__(name="modes")
        self.kind, self.frozen, self.after = kind, norm("frozen"), norm("after")
        self.fixed, self.dense = norm("fixed"), keras.layers.Dense(1, name="dense")
        self.fixed.trainable = False
        self.inner = keras.Sequential([norm("nested")])
        inputs = keras.Input([1])
        first = norm("first")(inputs, training=False)
        self.functional = keras.Model(inputs, norm("second")(first))
        self({"x": X})  # builds the layers, in inference mode

    def judge(self, batch):
        x = batch["x"]
        self.fixed(x)
        self.inner(x)
        self.functional(x)
        y = self.after(self.frozen(x, training=False), training=None)
        return {"loss": tf.reduce_mean(self.dense(y) ** 2)}

    def call(self, batch, training=False):
        return self.judge(batch)

    def means(self):
        layers = [self.frozen, self.after, self.fixed, *self.inner.layers]
        layers += self.functional.layers[1:]
        return {one.name: _mean(one.moving_mean.value) for one in layers}


def _mean(variable):
    """The mean of a variable over the replicas."""
    return float(np.mean([one.numpy() for one in getattr(variable, "values", [variable])]))


class Judging(TrainStep):
    def step(self, batch):
        if self.model.kind == "step":
            return self.minimize(self.model.judge, batch)
        return super().step(batch)

    def forward(self, batch):
        return self.model.judge(batch) if self.model.kind == "forward" else super().forward(batch)


def test_dropout_in_a_functional_model_is_active_in_training():
    def report(model, batch, y):
        return tf.reduce_mean(tf.square(model.net(batch["x"][:, None]))) + y[0]

    inputs = keras.Input([1])
    line = Line(report)
    line.net = keras.Model(inputs, keras.layers.Dropout(0.5, seed=1)(inputs))
    step, scalars, _ = run(lambda: line, rows(np.ones(1000), 1000), steps=1)
    assert scalars["losses/total"] == pytest.approx(2 + 1, abs=0.3)  # half of them are 2 squared
    seed = line.net.layers[1].seed_generator.state.numpy()
    assert seed[1] == 1


@pytest.mark.promise(49, 51)
@pytest.mark.filterwarnings("ignore:No loss reaches")
@pytest.mark.parametrize(("mode", "count"), [("graph", 1), ("graph", 2), ("step", 1)])
@pytest.mark.parametrize("kind", ["call", "forward", "step"])
def test_each_layer_of_a_training_forward_is_in_its_own_mode(kind, mode, count, replicas):
    strategy = replicas(count)
    train_step, _, _ = run(
        lambda: Modes(kind), rows(X, 4), strategy=strategy, step=Judging, mode=mode
    )
    expected = dict.fromkeys(["frozen", "fixed", "first"], 0.0)
    expected |= dict.fromkeys(["after", "nested", "second"], 1.5)  # some are divided by 1.0005
    assert train_step.model.means() == pytest.approx(expected, rel=1e-3)


@pytest.mark.promise(50)
@pytest.mark.parametrize("mode", ["graph", "step"])
@pytest.mark.parametrize("training", [None, False])
def test_a_rematerialised_block_has_the_gradient_of_the_block_itself(training, mode):
    class Model(keras.Model):
        def __init__(self, remat):
            super().__init__(name="model")
            self.dense = keras.layers.Dense(1, name="dense", kernel_initializer="ones")
            self.norm, self.remat = norm("norm"), remat

        def build(self, shapes):
            self.dense.build([None, 1])
            self.norm.build([None, 1])

        def block(self, x):
            return self.norm(self.dense(x), training=training)

        def call(self, batch, training=False):
            y = tf.recompute_grad(self.block)(batch["x"]) if self.remat else self.block(batch["x"])
            return tf.reduce_mean(y**3 * batch["x"])

    found = []
    for remat in (False, True):
        train_step, _, _ = run(lambda remat=remat: Model(remat), rows(X, 4), mode=mode)
        found.append([one.numpy() for one in train_step.model.variables])
    for plain, again in zip(*found, strict=True):
        np.testing.assert_allclose(again, plain, rtol=1e-5, atol=1e-6)
    moved = 0.0 if training is False else 1.5
    assert float(found[1][-2][0]) == pytest.approx(moved)


class Lazy(keras.Model):
    """Layers that Keras puts together to a functional model in the middle of a call."""

    def __init__(self, how):
        super().__init__()
        self.how, self.net = how, None
        self.parts = [
            keras.layers.BatchNormalization(momentum=0.0, epsilon=0.0, name="norm"),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(1, kernel_initializer="ones", use_bias=False),
        ]
        if how == "Sequential":
            self.net = keras.Sequential(self.parts)
        elif how == "Sequential in Sequential":
            self.net = keras.Sequential([keras.Sequential(self.parts[:2]), self.parts[2]])

    def build(self, shape):
        if self.net is None:
            inputs = outputs = keras.Input([1])
            for layer in self.parts:
                outputs = layer(outputs)
            self.net = keras.Model(inputs, outputs)

    def call(self, batch, training=False):
        y = self.net(batch, training=training)
        return tf.reduce_mean(y) if training else y


@pytest.mark.parametrize("how", ["Sequential", "Sequential in Sequential", "functional in build"])
@pytest.mark.parametrize("first", ["training", "inference"])
def test_layers_put_together_in_a_call_do_not_keep_its_mode(how, first):
    x = tf.constant([[1.0], [3.0]])
    model = Lazy(how)
    trainer = tfloss.Trainer(model, keras.optimizers.SGD(0.0), default_hooks=False, jit=False)
    if first == "inference":
        with plain_forward(False):
            model(x, training=False)
    trainer.train(tf.data.Dataset.from_tensors(x).repeat(), 1)
    norm = model.parts[0]
    assert norm.moving_mean.numpy().tolist() == [2.0]  # of the training batch: 2 and 1
    assert norm.moving_variance.numpy().tolist() == [1.0]
    other = tf.constant([[5.0], [9.0]])
    with plain_forward(False):
        for _ in range(4):  # Dropout would give 0 or twice as much
            assert model(other, training=False).numpy().tolist() == [[3.0], [7.0]]
    assert norm.moving_mean.numpy().tolist() == [2.0]
