"""A predictor and a loss function become a model that reports its loss."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tfloss.adapters import supervised
from tfloss.errors import DataError, LossError


def _net():
    return keras.Sequential(
        [
            keras.layers.Dense(8, activation="relu", kernel_regularizer="l2"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(3, activation="softmax"),
        ],
        name="net",
    )


def _data(weights):
    random = np.random.RandomState(0)
    x, y = random.randn(64, 5).astype(np.float32), random.randint(0, 3, 64)
    arrays = (x, y, random.rand(64).astype(np.float32)) if weights else (x, y)
    return tf.data.Dataset.from_tensor_slices(arrays).batch(8).repeat()


class _Inside(keras.Model):
    """The same model with its loss inside."""

    def __init__(self):
        super().__init__(name="inside")
        self.net = _net()

    def call(self, batch, training=False):
        x, y, *weight = batch
        p = self.net(x, training=training)
        return keras.losses.SparseCategoricalCrossentropy()(y, p, *weight) if training else p


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize(
    "loss",
    [
        "sparse_categorical_crossentropy",
        keras.losses.SparseCategoricalCrossentropy(),
        lambda y, p: keras.ops.sparse_categorical_crossentropy(y, p),
    ],
    ids=["name", "object", "function"],
)
def test_adapter_and_loss_in_the_model_train_bit_for_bit_as_fit(loss, weights):
    found = []
    for way in ("fit", "adapter", "inside"):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(5)
        optimizer = keras.optimizers.Adam(0.01)
        if way == "fit":
            net = _net()
            net.compile(optimizer=optimizer, loss=loss, jit_compile=False)
            net.fit(_data(weights), steps_per_epoch=20, verbose=0)
        else:
            model = _Inside() if way == "inside" else supervised(_net(), loss)
            net = model.net if way == "inside" else model.predictor
            trainer = tfloss.Trainer(model, optimizer, default_hooks=False, fused_adam=False)
            trainer.train(_data(weights), steps=20)
        found.append([v.numpy() for v in net.variables])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def _sequences():
    """Predicts three classes for each word that is not masked."""
    layers = [keras.layers.Embedding(5, 4, mask_zero=True), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input([3], dtype="int32"), *layers], name="sequences")


def _two_outputs():
    x = keras.Input([5])
    outputs = [keras.layers.Dense(2, name="a")(x), keras.layers.Dense(1, name="b")(x)]
    return keras.Model(x, outputs, name="two")


def _two_named():
    x = keras.Input([5])
    outputs = {"a": keras.layers.Dense(2, name="a")(x), "b": keras.layers.Dense(1, name="b")(x)}
    return keras.Model(x, outputs, name="two")


_RANDOM = np.random.RandomState(1)
_WORDS = _RANDOM.randint(0, 5, [16, 3]), _RANDOM.randint(0, 3, [16, 3])
_X, _A, _B = (_RANDOM.randn(16, size).astype(np.float32) for size in (5, 2, 1))
_WEIGHT = _RANDOM.rand(16).astype(np.float32)
_SPARSE = keras.losses.SparseCategoricalCrossentropy


@pytest.mark.parametrize(
    ("make", "loss", "arrays"),
    [
        (_sequences, _SPARSE(from_logits=True), _WORDS),
        (_sequences, _SPARSE(from_logits=True), (*_WORDS, _RANDOM.rand(16, 3).astype("f"))),
        (_sequences, _SPARSE(from_logits=True, reduction="mean_with_sample_weight"), _WORDS),
        (_sequences, _SPARSE(from_logits=True, ignore_class=1), _WORDS),
        (_sequences, _SPARSE(from_logits=True, reduction="sum"), _WORDS),
        (_two_outputs, ["mse", "mae"], (_X, (_A, _B))),
        (_two_outputs, {"b": "mse", "a": "mae"}, (_X, (_A, _B), _WEIGHT)),
        (_two_named, {"a": "mse", "b": "huber"}, (_X, {"a": _A, "b": _B})),
        (_two_named, {"a": "mse", "b": None}, (_X, {"a": _A, "b": _B}, {"a": _WEIGHT})),
    ],
)
def test_masks_weights_and_several_outputs_train_bit_for_bit_as_fit(make, loss, arrays):
    data = tf.data.Dataset.from_tensor_slices(arrays).batch(4)
    found = []
    for way in ("fit", "adapter"):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(5)
        net, optimizer = make(), keras.optimizers.SGD(0.1)
        if way == "fit":
            net.compile(optimizer=optimizer, loss=loss, jit_compile=False)
            net.fit(data, verbose=0)
        else:
            options = {"default_hooks": False, "jit": False}
            trainer = tfloss.Trainer(supervised(net, loss), optimizer, **options)
            trainer.train(data, steps=4)
        found.append([v.numpy() for v in net.variables])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("make", "loss", "names"),
    [
        (_two_outputs, ["mse", "mae"], {"a", "b"}),
        (_two_named, {"a": "mse"}, {"a"}),
    ],
)
def test_losses_of_several_outputs_are_named_after_them(make, loss, names):
    labels = (_A, _B) if make is _two_outputs else {"a": _A, "b": _B}
    data = tf.data.Dataset.from_tensor_slices((_X, labels)).batch(4)
    model = supervised(make(), loss)
    trainer = tfloss.Trainer(model, keras.optimizers.SGD(0.1), default_hooks=False, jit=False)
    assert set(trainer.evaluate(data, losses=True)) == {f"losses/{n}" for n in (*names, "total")}


def test_losses_that_do_not_fit_are_refused():
    with pytest.raises(LossError, match="has reduction=None.*Choose reduction='sum' for the same"):
        supervised(_net(), keras.losses.MeanSquaredError(reduction=None))
    data = tf.data.Dataset.from_tensor_slices((_X, {"a": _A, "b": _B})).batch(4)
    for loss, message in [
        ({"a": "mse", "c": "mse"}, r"path: \('c',\)(?s:.*)labels y: {'a': float32 \[None, 2\]"),
        (["mse"], "losses don't fit the outputs of the model"),
    ]:
        model = supervised(_two_named(), loss)
        with pytest.raises(LossError, match=message):
            tfloss.Trainer(model, keras.optimizers.SGD(0.1), default_hooks=False).train(data, 1)


def test_a_loss_of_outputs_and_batch_gets_any_batch():
    def loss(outputs, batch):
        return {"near": tf.reduce_mean((outputs - batch["y"]) ** 2), "far": 0.0 * outputs[0, 0]}

    class Net(keras.Model):
        def __init__(self):
            super().__init__(name="net")
            self.dense = keras.layers.Dense(2)

        def call(self, batch, training=False):
            return self.dense(batch["x"])

    data = tf.data.Dataset.from_tensor_slices({"x": _X, "y": _A}).batch(4)
    model = supervised(Net(), loss)
    trainer = tfloss.Trainer(model, keras.optimizers.SGD(0.1), default_hooks=False, jit=False)
    result = trainer.train(data, steps=1)
    assert set(result.losses) == {"near", "far", "total"} and model.name == "supervised_net"
    batch = next(iter(data))
    np.testing.assert_array_equal(model(batch), model.predictor(batch))
    with pytest.raises(ValueError, match=r"give their weights to the Trainer"):
        supervised(Net(), loss, loss_weights=[1.0])


def test_the_loss_is_named_and_inference_accepts_x_alone():
    model = supervised(_net(), "sparse_categorical_crossentropy")
    result = tfloss.Trainer(model, keras.optimizers.SGD(0.1), default_hooks=False).train(
        _data(False), steps=1
    )
    assert set(result.losses) == {"sparse_categorical_crossentropy", "regularization", "total"}
    x, y = next(iter(_data(False)))
    np.testing.assert_array_equal(model(x), model((x, y)))


def test_predictions_can_be_evaluated():
    model = supervised(_net(), "sparse_categorical_crossentropy")
    trainer = tfloss.Trainer(model, keras.optimizers.SGD(0.1), default_hooks=False)
    accuracy = tfloss.metric(
        keras.metrics.SparseCategoricalAccuracy(), lambda batch, p: (batch[1], p)
    )
    found = trainer.evaluate(_data(False).take(8), {"accuracy": accuracy}, losses=True)
    assert 0.0 <= found["accuracy"] <= 1.0 and found["losses/total"] > 0


@pytest.mark.parametrize("batch", [{"x": [[1.0]]}, ([[1.0]],), ([[1.0]], [1], [1.0], [1.0])])
def test_other_batches_are_rejected(batch):
    model = supervised(keras.Sequential([keras.layers.Dense(1)]), "mse")
    data = tf.data.Dataset.from_tensors(batch)
    with pytest.raises(DataError, match=r"\(x, y\) or \(x, y, sample_weight\), got a"):
        tfloss.Trainer(model, keras.optimizers.SGD(0.1), default_hooks=False).train(data, steps=1)
