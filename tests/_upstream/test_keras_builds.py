"""Keras still builds layers as `tfloss._upstream.keras_builds` expects."""

import keras
import pytest
import tensorflow as tf

from tfloss import _upstream

pytestmark = pytest.mark.upstream


def test_builds_run_eagerly():
    seen = []

    class Layer(keras.Layer):
        def build(self, shape):
            seen.append((tf.executing_eagerly(), shape))

        def call(self, x):
            return x

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.layer = Layer()

        def call(self, x):
            return self.layer(x)

    tf.function(Model())(tf.zeros([2, 3]))
    with _upstream.built_eagerly():
        tf.function(Model())(tf.zeros([2, 3]))
        tf.function(Layer())(tf.zeros([2, 3]))
    assert seen == [(False, (2, 3)), (True, (2, 3)), (True, (2, 3))]


class Wrapper(keras.layers.Layer):
    """A layer without a `build`, whose `call` is counted."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.unused, self.calls = inner, keras.layers.Dense(1), 0
        self.late = None

    def call(self, x):
        self.calls += 1
        if self.late is None:
            self.late = self.add_weight(shape=(), name="late", initializer="ones")
        return self.inner(x) * self.late


def test_a_call_builds_once_what_keras_traces_again_and_again():
    def made():
        wrappers = [Wrapper(keras.layers.Dense(2, name="last"))]
        for _ in range(3):
            wrappers.insert(0, Wrapper(wrappers[0]))
        return wrappers

    def called(wrappers):
        keras.backend.clear_session()
        tf.function(lambda x: wrappers[0](wrappers[0](x)), autograph=False)(tf.zeros([2, 2]))
        return [one.calls for one in wrappers], wrappers[0].variables

    with pytest.warns(UserWarning, match="looks like it has unbuilt state"):
        keras_calls, keras_variables = called(made())
    with _upstream.built_eagerly():
        wrappers = made()
        calls, variables = called(wrappers)
    assert calls == [4, 4, 4, 4]  # two, traced twice since variables are made
    assert keras_calls == [5, 6, 7, 8]
    paths = [one.path for one in variables]
    assert paths == [one.path for one in keras_variables]
    assert all(one.built and one.path and not one.unused.built for one in wrappers)
    assert wrappers[1].get_build_config() == {"input_shape": (2, 2)}
    with pytest.raises(ValueError, match="cannot add new elements of state"):
        wrappers[0].add_weight(shape=())


def test_unbuilt_parts_are_found():
    def model(*layers):
        return keras.Sequential([keras.Input((2,)), keras.layers.Dense(3), *layers])

    built = model()
    assert not _upstream.has_unbuilt_parts(built)
    built.compile(loss="mse")
    assert _upstream.has_unbuilt_parts(built)
    built.compute_loss(None, tf.zeros([1, 3]), built(tf.zeros([1, 2])))
    assert not _upstream.has_unbuilt_parts(built)

    class Layer(keras.Layer):
        def __init__(self):
            super().__init__()
            self.f1 = keras.metrics.F1Score()

        def call(self, x):
            return x

    lazy = model(Layer())
    assert _upstream.has_unbuilt_parts(lazy)
    lazy.layers[-1].f1.update_state(tf.zeros([1, 3]), tf.zeros([1, 3]))
    assert not _upstream.has_unbuilt_parts(lazy)

    lazy.layers[0].built = False
    assert _upstream.has_unbuilt_parts(lazy)


class _NestedFunction(keras.Model):
    """The first layers are in a `tf.function`, as Keras models often have them for speed."""

    def __init__(self):
        super().__init__(name="net")
        self.first, self.norm = keras.layers.Dense(3), keras.layers.BatchNormalization()
        self.last = keras.layers.Dense(1)

    @tf.function
    def features(self, x, training):
        return self.norm(self.first(x), training=training)

    def call(self, x, training=False):
        return self.last(self.features(x, training))


@pytest.mark.promise(53)
@pytest.mark.filterwarnings("ignore:Gradients do not exist", "ignore:.*does not have gradients")
def test_fit_never_trains_what_a_nested_function_calls():
    x = tf.constant([[1.0], [2.0]])
    model = _NestedFunction()
    model.compile("sgd", "mse")
    model.fit(x, x, epochs=1, verbose=0)
    before = [v.numpy() for v in model.variables]
    model.fit(x, x, epochs=3, verbose=0)
    after = [v.numpy() for v in model.variables]
    moved = [not (a == b).all() for a, b in zip(before, after, strict=True)]
    names = [v.path.partition("/")[2] for v in model.variables]
    assert [n for n, m in zip(names, moved, strict=True) if m] == ["dense_1/kernel", "dense_1/bias"]
    assert len(names) == 8


@pytest.mark.promise(53)
def test_a_stateless_call_freezes_the_statistics_of_later_calls():
    x = tf.constant([[1.0], [2.0]])
    model = _NestedFunction()
    model.build((2, 1))  # builds nothing, but allows the next line
    model.first.build((None, 1)), model.norm.build((None, 3)), model.last.build((None, 3))
    values = [
        [v.value for v in vs] for vs in (model.trainable_variables, model.non_trainable_variables)
    ]
    tf.function(lambda x: model.stateless_call(*values, x, training=True)[0])(x)
    tf.function(lambda x: model(x, training=True))(x)
    assert model.norm.moving_mean.numpy().tolist() == [0.0, 0.0, 0.0]
