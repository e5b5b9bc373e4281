"""Rematerialised blocks draw the random numbers of their forward pass again."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.toys import rows, run
from tfloss import _upstream
from tfloss.errors import ModelError
from tfloss.forward.context import plain_forward

X = np.arange(1.0, 65.0)


def _noise(x, generator):
    return x * (1.0 + keras.random.uniform(tf.shape(x), seed=generator))


class Model(keras.Model):
    """loss = sum(w noise x), so that its gradient times w is the loss if the noise is the same."""

    def __init__(self, kind):
        super().__init__(name="model")
        self.kind = kind
        self.w = self.add_weight(name="w", shape=(), initializer="ones")
        self.drop = keras.layers.Dropout(0.5, seed=1)
        self.other = keras.layers.Dropout(0.5, seed=2)
        self.generator = keras.random.SeedGenerator(3)
        self.kept = tf.recompute_grad(self.one)
        with keras.RematScope(mode="full"):
            self.scoped = keras.layers.Dropout(0.5, seed=4)

    def one(self, x):
        return self.drop(self.w * x, training=True)

    def shared(self, x):
        """Two draws of a generator that all blocks share."""
        return _noise(_noise(self.w * x, self.generator), self.generator)

    def global_generator(self, x):
        return keras.random.dropout(self.w * x, 0.5)

    def nested(self, x):
        inner = tf.recompute_grad(lambda x: self.other(x, training=True))
        return self.drop(inner(self.w * x), training=True) + self.drop(x, training=True) * 0.0

    def stateful(self, x):
        return self.w * x * tf.random.uniform(tf.shape(x))

    def stateful_branch(self, x):
        return tf.cond(tf.reduce_sum(x) > 0.0, lambda: self.stateful(x), lambda: self.w * x)

    def stateful_function(self, x):
        return tf.function(lambda x: self.stateful_branch(x), autograph=False)(x)

    def tf_generator(self, x):
        return self.w * x * tf.random.get_global_generator().uniform(tf.shape(x))

    def tf_dropout(self, x):
        return tf.nn.dropout(self.w * x, 0.5)

    def branch(self, x):
        return tf.cond(tf.reduce_sum(x) > 0.0, lambda: self.shared(x), lambda: self.w * x)

    def call(self, batch, training=False):
        x = batch["x"]
        if self.kind == "twice":
            y = tf.recompute_grad(self.shared)(x) + tf.recompute_grad(self.shared)(2.0 * x)
        elif self.kind == "kept":
            y = self.kept(x)
        elif self.kind == "scope":
            y = self.scoped(self.w * x, training=True)
        elif self.kind == "keras":
            y = keras.remat(self.one)(x)
        else:
            y = tf.recompute_grad(getattr(self, self.kind))(x)
        return tf.reduce_sum(y)


KINDS = ["one", "keras", "scope", "shared", "twice", "nested", "global_generator"]


def _loss_and_gradient(kind, **options):
    """The loss of the first step, and the gradient of w, from an update with rate 1."""
    keras.utils.set_random_seed(0)
    strategy = options.get("strategy") or tf.distribute.get_strategy()
    train_step, losses, _ = run(
        lambda: Model(kind), rows(X, 64), optimizer=lambda: keras.optimizers.SGD(1.0), **options
    )
    assert strategy is not None
    return losses["losses/total"], 1.0 - float(train_step.model.w.numpy())


@pytest.mark.promise(39)
@pytest.mark.upstream
def test_upstream_the_gradient_is_that_of_another_mask():
    model = Model("one")
    with tf.GradientTape() as tape:
        loss = model({"x": tf.constant(X, tf.float32)}, training=True)
    gradient = float(tape.gradient(loss, model.w.value))
    assert gradient != pytest.approx(float(loss), rel=1e-3)


@pytest.mark.promise(39)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("mode", "count"), [("graph", 1), ("step", 1), ("graph", 2)])
def test_the_gradient_is_that_of_the_loss(kind, mode, count, replicas):
    options = {} if count == 1 else {"strategy": replicas(count)}
    loss, gradient = _loss_and_gradient(kind, mode=mode, **options)
    assert gradient == pytest.approx(loss, rel=1e-5)


def test_the_seeds_advance_once_a_step_and_differ_between_steps():
    """A Dropout of its own has drawn one seed after one step."""
    train_step, _, _ = run(lambda: Model("one"), rows(X, 64), 3)
    state = train_step.model.drop.seed_generator.state.numpy()
    assert state.tolist() == [1, 3]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("stateful", "RandomUniform.*keras.random.SeedGenerator"),
        ("stateful_branch", "RandomUniform.*keras.random.SeedGenerator"),
        ("stateful_function", "RandomUniform.*keras.random.SeedGenerator"),
        ("tf_dropout", "RandomUniform.*keras.random.SeedGenerator"),
        ("tf_generator", "keras.random.SeedGenerator"),
        ("kept", "inside of the model's call"),
        ("branch", "tf.cond.*outside"),
    ],
)
def test_numbers_that_can_not_be_drawn_again_are_refused(kind, words):
    with pytest.raises(ModelError, match=f"(?s){words}"):
        _loss_and_gradient(kind)


def test_a_block_that_is_not_run_again_may_draw_as_it_likes():
    class Model(keras.Model):
        def call(self, batch, training=False):
            y = tf.recompute_grad(lambda x: x + tf.random.uniform(tf.shape(x)))(batch["x"])
            return {"y": y}

    with plain_forward(False):
        found = tf.function(lambda x: Model()({"x": x})["y"])(tf.zeros([8]))
    assert 0.0 < float(tf.reduce_min(found)) and float(tf.reduce_max(found)) < 1.0


def test_outside_of_a_pass_nothing_changes():
    before = tf.recompute_grad, keras.random.SeedGenerator.next
    with _upstream.repeated_seeds(lambda: False):
        generator = keras.random.SeedGenerator(5)
        assert generator.next().numpy().tolist() == [5, 0]
        assert generator.next().numpy().tolist() == [5, 1]
        assert float(tf.recompute_grad(lambda x: 2.0 * x)(tf.constant(3.0))) == 6.0
    assert (tf.recompute_grad, keras.random.SeedGenerator.next) == before
