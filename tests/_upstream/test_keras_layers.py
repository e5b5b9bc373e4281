"""Keras layers and models still behave as `tfloss._upstream.keras_layers` expects."""

import keras
import pytest
import tensorflow as tf

from tfloss import _upstream

pytestmark = pytest.mark.upstream


def test_add_loss_is_seen_and_restored():
    original, seen = keras.Layer.add_loss, []
    layer = keras.layers.Dense(1, activity_regularizer="l2")

    def observe(layer, value):
        seen.append((layer.name, float(value)))
        return True

    with _upstream.intercept_add_loss(observe), _upstream.intercept_add_loss(lambda *a: False):
        layer(tf.zeros([2, 1]))
    assert seen == [(layer.name, 0.0)]
    assert keras.Layer.add_loss is original
    assert layer.losses == []


def test_inputs_untouched_keeps_labels_but_casts_weights():
    class Model(keras.Model):
        def __init__(self):
            super().__init__(dtype="mixed_float16")
            self.w = self.add_weight(name="w", shape=())

        def call(self, x):
            return x, tf.convert_to_tensor(self.w)

    model, x = Model(), tf.constant([70000.0])
    assert model(x)[0].dtype == tf.float16
    with _upstream.inputs_untouched(model):
        label, weight = model(x)
    assert label.dtype == tf.float32 and weight.dtype == tf.float16
    assert model(x)[0].dtype == tf.float16


def test_inputs_untouched_passes_extension_types():
    class Points(tf.experimental.ExtensionType):
        x: tf.Tensor

    class Model(keras.Model):
        def call(self, points):
            return points.x

    model, points = Model(), Points(tf.ones([2, 3]))
    with pytest.raises(ValueError, match="Only input tensors may be passed as positional"):
        model(points)
    with _upstream.inputs_untouched(model):
        assert model(points).shape == [2, 3]
    with pytest.raises(ValueError, match="Only input tensors may be passed as positional"):
        model(points)


def test_building_a_model_runs_call_in_a_scratch_graph():
    seen = []

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, x):
            seen.append(_upstream.in_scratch_graph())
            return self.dense(x)

    model = Model()
    model(tf.zeros([1, 1]))
    tf.function(model)(tf.zeros([1, 1]))
    assert seen == [True, False, False]


def test_layers_by_path_sees_into_lists_and_dicts():
    class Block(keras.layers.Layer):
        def __init__(self, name):
            super().__init__(name=name)
            self.parts = {"a": keras.layers.Dense(1, name=f"{name}_a")}

    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="model")
            self.blocks = [Block("x"), (Block("y"),)]

    paths = [path for path, _ in _upstream.layers_by_path(Model())]
    assert paths == ["model", "model/x", "model/x/x_a", "model/y", "model/y/y_a"]


def test_seed_states_are_those_that_layers_own():
    class Noisy(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="noisy")
            self.first = keras.random.SeedGenerator(1)
            self.others = [keras.random.SeedGenerator(2)]

    layer = Noisy()
    assert [(name, int(state.numpy()[0])) for name, state in _upstream.seed_states(layer)] == [
        ("noisy/seed_generator", 1),
        ("noisy/seed_generator", 2),
    ]


def test_masks_are_attached_to_tensors():
    embedded = keras.layers.Embedding(3, 2, mask_zero=True)(tf.constant([[1, 0]]))
    assert _upstream.mask_of(embedded).numpy().tolist() == [[True, False]]
    assert _upstream.mask_of(embedded + 1.0) is None and _upstream.mask_of(3.0) is None
    error = keras.losses.MeanAbsoluteError()
    plain = tf.constant([[[1.0], [9.0]]])
    assert float(error(tf.zeros_like(plain), plain)) == 5.0
    masked = _upstream.with_mask(plain, tf.constant([[True, False]]))
    assert float(error(tf.zeros_like(plain), masked)) == 1.0


@pytest.mark.promise(56)
@pytest.mark.upstream
def test_keras_computes_cross_entropies_of_the_logits_that_are_attached():
    loss = keras.losses.SparseCategoricalCrossentropy()
    certain = keras.activations.softmax(tf.constant([[50.0, 0.0]]))
    attached = _upstream.attached_to(certain)
    assert float(loss(tf.constant([1]), certain)) == 50.0 and list(attached) == ["logits"]
    copied = tf.identity(certain)
    assert float(loss(tf.constant([1]), copied)) < 17.0
    assert float(loss(tf.constant([1]), _upstream.attach(copied, attached))) == 50.0
    assert _upstream.attached_to(3.0) == {} == _upstream.attached_to(tf.constant(1.0))

    @tf.function
    def of_operation():
        return _upstream.attached_to(tf.nn.softmax([[50.0, 0.0]]))

    @tf.function
    def losses(attached):
        probabilities = tf.constant([[1.0, 0.0]])
        return loss(tf.constant([1]), probabilities), loss(
            tf.constant([1]), _upstream.attach(probabilities, attached)
        )

    assert list(of_operation()) == ["Softmax"]
    clipped, exact = losses(of_operation())
    assert float(clipped) < 17.0 and float(exact) == 50.0


def test_paths_by_parents_do_not_depend_on_the_first_call():
    layer = keras.layers.Dense(1, name="d")
    layer.build((None, 1))
    model = keras.Sequential([layer], name="m")
    assert [path for path, _ in _upstream.layers_by_path(model)] == ["m", "d"]
    assert [path for path, _ in _upstream.layers_by_path(model, by_parents=True)] == ["m", "m/d"]


def test_the_losses_of_a_layer_can_be_replaced():
    original, layer = keras.Layer.losses, keras.layers.Dense(1, kernel_regularizer="l2")
    layer.build([1, 1])
    with _upstream.intercept_losses(lambda one: ["mine"] if one is layer else None):
        assert layer.losses == ["mine"]
        assert keras.layers.Dense(1).losses == []
    assert keras.Layer.losses is original
    assert len(layer.losses) == 1


def test_sublayers_come_in_the_order_of_losses():
    class Adds(keras.Layer):
        def __init__(self, value, *inner):
            super().__init__()
            self.value, self.inner = value, list(inner)

        def call(self, x):
            for one in self.inner:
                one(x)
            self.add_loss(tf.constant(self.value))
            return x

    layer = Adds(1.0, Adds(2.0, Adds(3.0)), Adds(4.0))
    layer(tf.ones([1]))
    order = [one.value for one in _upstream.with_sublayers(layer)]
    assert [float(one) for one in layer.losses] == order


def test_variables_keep_their_dtype_without_autocast():
    class Model(keras.Model):
        def __init__(self):
            super().__init__(dtype="mixed_float16")
            self.w = self.add_weight(name="w", shape=())

        def call(self, x):
            with _upstream.no_autocast():
                exact = tf.convert_to_tensor(self.w)
            return exact, tf.convert_to_tensor(self.w)

    exact, cast = Model()(tf.zeros([]))
    assert exact.dtype == tf.float32 and cast.dtype == tf.float16


def test_masks_are_merged_with_weights_as_losses_do():
    mask, weights = (
        tf.constant([[True, False], [True, True]]),
        tf.constant([[2.0, 3.0], [4.0, 5.0]]),
    )
    merge = _upstream.weights_with_mask
    assert merge(None, None, "float32") is None
    assert merge(None, mask, "float32").numpy().tolist() == [[1, 0], [1, 1]]
    assert merge(weights, mask, "float32").numpy().tolist() == [[2, 0], [4, 5]]
    values = _upstream.with_mask(tf.ones([2, 2, 1]), mask)
    loss = keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")
    expected = (2 * 1 + 4 * 9 + 5 * 9) / (2 + 4 + 5)
    truth = tf.constant([[[2.0], [7.0]], [[4.0], [4.0]]])
    assert float(loss(truth, values, weights)) == pytest.approx(expected)


def test_layers_with_a_build_of_their_own():
    assert _upstream.has_own_build(keras.layers.Dense(1))
    assert not _upstream.has_own_build(keras.layers.Dropout(0.5))
    assert not _upstream.has_own_build(keras.Layer())


def test_automatic_names():
    class MyNet2D(keras.Model): ...

    keras.backend.clear_session()
    for one in (MyNet2D(), keras.layers.LayerNormalization(), keras.layers.ReLU()):
        assert type(one)().name == f"{_upstream.automatic_name(one)}_1"
