"""Training by the adapters ends with the same bits as compile and fit, on one CPU without XLA."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tfloss.adapters import from_compiled, supervised

_RANDOM = np.random.RandomState(1)
_X = _RANDOM.randn(20, 5).astype(np.float32)
_CLASS = _RANDOM.randint(0, 3, 20)
_VALUES = _RANDOM.randn(20, 2).astype(np.float32)
_WEIGHT = _RANDOM.rand(20).astype(np.float32)
_WORDS = _RANDOM.randint(0, 5, [20, 4])


class _Penalty(keras.Layer):
    """Adds a loss."""

    def call(self, x):
        self.add_loss(0.1 * keras.ops.mean(keras.ops.square(x)))
        return x


def _classifier(penalty=True):
    """A functional model with state, noise, regularizers and an added loss."""
    x = keras.Input([5])
    h = keras.layers.Dense(8, activation="relu", kernel_regularizer="l2")(x)
    h = keras.layers.BatchNormalization()(h)
    h = keras.layers.Dropout(0.3)(h)
    h = _Penalty()(h) if penalty else h
    y = keras.layers.Dense(3, activation="softmax", bias_regularizer="l1")(h)
    return keras.Model(x, y, name="classifier")


def _two_heads():
    x = keras.Input([5])
    h = keras.layers.Dense(8, activation="relu")(x)
    heads = {
        "value": keras.layers.Dense(2, name="value")(h),
        "kind": keras.layers.Dense(3, name="kind")(h),
    }
    return keras.Model(x, heads, name="two_heads")


def _tagger():
    """Predicts a class for each word that is not masked."""
    x = keras.Input([4], dtype="int32")
    h = keras.layers.Embedding(5, 6, mask_zero=True)(x)
    return keras.Model(x, keras.layers.Dense(3)(keras.layers.GRU(4, return_sequences=True)(h)))


def _sgd():
    return keras.optimizers.SGD(0.1, momentum=0.9)


_LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
_KINDS = {"value": _VALUES, "kind": _CLASS}
CASES = {
    "sparse labels, clipnorm": (
        _classifier,
        {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]},
        (_X, _CLASS),
        lambda: keras.optimizers.Adam(0.01, clipnorm=0.1),
    ),
    "one-hot labels, weight decay, schedule": (
        _classifier,
        {"loss": keras.losses.CategoricalCrossentropy(label_smoothing=0.1)},
        (_X, np.eye(3, dtype=np.float32)[_CLASS], _WEIGHT),
        lambda: keras.optimizers.AdamW(
            keras.optimizers.schedules.CosineDecay(0.1, 8), weight_decay=0.1
        ),
    ),
    "a dict of losses with loss and sample weights": (
        _two_heads,
        {
            "loss": {"value": "huber", "kind": _LOGITS},
            "loss_weights": {"value": 0.3, "kind": 2.0},
            "metrics": {"value": "mae", "kind": "accuracy"},
            "weighted_metrics": {"kind": ["accuracy"]},
        },
        (_X, _KINDS, {"value": _WEIGHT, "kind": _WEIGHT[::-1].copy()}),
        _sgd,
    ),
    "a masked sequence": (
        _tagger,
        {"loss": _LOGITS},
        (_WORDS, _RANDOM.randint(0, 3, [20, 4])),
        lambda: keras.optimizers.SGD(0.1),
    ),
    "mixed precision, global_clipnorm": (
        lambda: _classifier(penalty=False),  # in half precision, fit can't sum an added loss
        {"loss": "sparse_categorical_crossentropy"},
        (_X, _CLASS),
        lambda: keras.optimizers.SGD(0.1, global_clipnorm=0.5),
    ),
    "labels [n] for predictions [n, 1]": (
        lambda: keras.Sequential([keras.Input([5]), keras.layers.Dense(1)]),
        {"loss": lambda y, p: (y - p) ** 2, "loss_weights": [0.5]},
        (_X, _X[:, 0]),
        _sgd,
    ),
    "added losses alone": (_classifier, {}, (_X,), _sgd),
}


@contextlib.contextmanager
def _policy(name):
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy("float32")


def _both(case, wrap):
    """Trains for two epochs by fit and by a Trainer. Returns the models and the trainer."""
    make, compiled, arrays, optimizer = CASES[case]
    data = tf.data.Dataset.from_tensor_slices(arrays).batch(8)
    models, trainer = [], None
    for way in ("fit", "trainer"):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(5)
        with _policy("mixed_bfloat16" if "mixed" in case else "float32"):
            model = make()
            model.compile(optimizer=optimizer(), jit_compile=False, **compiled)
            if way == "fit":
                model.fit(data, epochs=2, verbose=0)
            else:
                options = {"default_hooks": False, "fused_adam": False, "jit": False}
                trainer = tfloss.Trainer(wrap(model, compiled), model.optimizer, **options)
                trainer.train(data.repeat(), steps=6)
        models.append(model)
    return models, trainer, data


def _assert_equal(one, other):
    for a, b in zip(one.variables, other.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)


@pytest.mark.parametrize("case", CASES)
def test_a_compiled_model_trains_bit_for_bit_as_fit(case):
    (fitted, trained), trainer, data = _both(case, lambda model, _: from_compiled(model))
    _assert_equal(fitted, trained)
    expected = fitted.evaluate(data.take(2), return_dict=True, verbose=0)  # batches of one size
    assert trainer.evaluate(data.take(2)) == pytest.approx(expected, rel=2e-6)


def test_a_predictor_with_losses_trains_bit_for_bit_as_fit():
    def wrap(model, compiled):
        return supervised(model, compiled["loss"], loss_weights=compiled["loss_weights"])

    (fitted, trained), _, _ = _both("a dict of losses with loss and sample weights", wrap)
    _assert_equal(fitted, trained)


def test_the_gradient_of_an_embedding_is_summed_first_so_momentum_differs_by_rounding(monkeypatch):
    case = "a masked sequence"
    monkeypatch.setitem(CASES, case, (*CASES[case][:3], _sgd))
    (fitted, trained), _, _ = _both(case, lambda model, _: from_compiled(model))
    for a, b in zip(fitted.variables, trained.variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=0, atol=3e-8)
