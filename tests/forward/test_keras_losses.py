"""A Keras loss is divided by the count of the global batch, however the batch is split."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tfloss.adapters import supervised
from tfloss.errors import LossError

# Four sequences of three numbers. The first two have 2 valid ones, the others have 4 valid ones.
X = np.float32([[1, 0, 0], [2, 0, 0], [3, 4, 5], [6, 0, 0]])[..., None]
VALID = (X[..., 0] != 0).astype(np.float32)
WEIGHTS = np.float32([[1, 9, 9], [2, 9, 9], [4, 0, 1], [3, 9, 9]])
SQUARES = X[..., 0] ** 2


def _masked():
    """Predicts w x, with w = 1, and masks zeros."""
    return keras.Sequential(
        [
            keras.layers.Masking(),
            keras.layers.Dense(1, use_bias=False, kernel_initializer="ones"),
        ]
    )


def _plain():
    return keras.Sequential([keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])


def _mse(reduction="sum_over_batch_size"):
    return keras.losses.MeanSquaredError(reduction=reduction)


# {case: (predictor, loss, weights, value of the loss at w = 1)}
CASES = {
    "masked": (_masked, _mse(), None, SQUARES.sum() / 6),
    "masked, by name": (_masked, "mse", None, SQUARES.sum() / 6),
    "masked and weighted": (_masked, _mse(), WEIGHTS, (WEIGHTS * VALID * SQUARES).sum() / 6),
    "a mean over weights": (
        _plain,
        _mse("mean_with_sample_weight"),
        WEIGHTS,
        (WEIGHTS * SQUARES).sum() / WEIGHTS.sum(),
    ),
    "a masked mean over weights": (
        _masked,
        _mse("mean_with_sample_weight"),
        WEIGHTS,
        (WEIGHTS * SQUARES).sum() / (WEIGHTS * VALID).sum(),
    ),
    "a masked mean without weights": (
        _masked,
        _mse("mean_with_sample_weight"),
        None,
        SQUARES.sum() / 6,
    ),
    "weighted": (_plain, _mse(), WEIGHTS, (WEIGHTS * SQUARES).mean()),
    "a sum": (_plain, _mse("sum"), None, SQUARES.sum()),
    "a masked and weighted sum": (_masked, _mse("sum"), WEIGHTS, (WEIGHTS * SQUARES).sum()),
    "a function": (
        _masked,
        lambda y, p: tf.reduce_mean((y - p) ** 2, -1),
        None,
        SQUARES.sum() / 6,
    ),
}


def _one_step(make, loss, weights, strategy, batch=4, **options):
    """Returns the loss of the first step, and w after it, for targets 0 and the rate 0.01."""
    arrays = (X, np.zeros_like(X)) if weights is None else (X, np.zeros_like(X), weights)
    data = tf.data.Dataset.from_tensor_slices(arrays).batch(batch).repeat()
    with strategy.scope():
        model, optimizer = supervised(make(), loss), keras.optimizers.SGD(0.01)
    options = {"jit": False, **options}
    trainer = tfloss.Trainer(model, optimizer, strategy=strategy, default_hooks=False, **options)
    result = trainer.train(data, steps=1)
    return result.losses["total"], float(model.trainable_variables[0].numpy()[0, 0])


@pytest.mark.promise(41)
@pytest.mark.parametrize("case", CASES)
def test_parts_of_a_batch_divide_by_the_count_of_the_batch(case, replicas):
    *arguments, expected = CASES[case]
    loss, w = _one_step(*arguments, replicas(2))
    assert loss == pytest.approx(expected, rel=1e-6)
    # The loss is that at w = 1 times w squared.
    assert w == pytest.approx(1 - 0.01 * 2 * expected, rel=1e-5)


@pytest.mark.parametrize(
    ("case", "count", "options"),
    [
        ("masked and weighted", 1, {}),
        ("masked and weighted", 1, {"accumulate": 2}),
        ("masked and weighted", 1, {"jit": True}),
        ("masked and weighted", 1, {"jit": "loop"}),
        ("masked and weighted", 2, {"jit": True}),
        ("a masked mean over weights", 2, {"accumulate": 2}),
        ("a sum", 2, {"jit": True, "accumulate": 2}),
        ("a sum", 1, {}),
    ],
)
def test_all_modes_divide_by_the_count_of_the_batch(case, count, options, replicas):
    *arguments, expected = CASES[case]
    batch = 4 // options.get("accumulate", 1)
    loss, w = _one_step(*arguments, replicas(count), batch, **options)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert w == pytest.approx(1 - 0.01 * 2 * expected, rel=1e-5)


@pytest.mark.promise(41)
@pytest.mark.upstream
def test_fit_divides_by_the_count_of_each_replica(replicas):
    with replicas(2).scope():
        net = _masked()
        net.compile(optimizer=keras.optimizers.SGD(0.01), loss="mse", jit_compile=False)
    net.fit(tf.data.Dataset.from_tensors((X, np.zeros_like(X))), verbose=0)
    of_parts = (SQUARES[:2].sum() / 2 + SQUARES[2:].sum() / 4) / 2  # 12, and not 15.17
    assert net.get_weights()[0][0, 0] == pytest.approx(1 - 0.01 * 2 * of_parts, rel=1e-5)


@pytest.mark.parametrize("ignore", [None, 3])
def test_words_that_are_masked_or_ignored_do_not_count(ignore, replicas):
    words = np.int32([[1, 0, 0], [2, 0, 0], [1, 2, 1], [2, 0, 0]])
    labels = np.where(words == 0, 3, words)
    data = tf.data.Dataset.from_tensor_slices((words, labels)).batch(4)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=ignore)
    with (strategy := replicas(2)).scope():
        net = keras.layers.Embedding(4, 4, mask_zero=ignore is None)
        model, optimizer = supervised(keras.Sequential([net]), loss), keras.optimizers.SGD(0.0)
    trainer = tfloss.Trainer(model, optimizer, strategy=strategy, default_hooks=False, jit=False)
    result = trainer.train(data, steps=1)
    table = net.embeddings.numpy()
    log_p = table - np.log(np.exp(table).sum(-1, keepdims=True))
    expected = pytest.approx(-np.mean([log_p[word, word] for word in (1, 2, 1, 2, 1, 2)]), 1e-5)
    assert result.losses["total"] == expected
    assert trainer.evaluate(data, losses=True)["losses/total"] == expected


def test_one_value_for_all_examples_can_not_be_weighted():
    loss = lambda y, p: tf.reduce_mean((y - p) ** 2)  # noqa: E731
    assert _one_step(_plain, loss, None, tf.distribute.get_strategy())[0] == pytest.approx(
        SQUARES.mean()
    )
    with pytest.raises(LossError, match="'lambda' gives one value for all examples.*weigh them"):
        _one_step(_plain, loss, WEIGHTS, tf.distribute.get_strategy())


def test_a_loss_with_its_own_reduction_is_called_as_it_is(replicas):
    class Own(keras.losses.Loss):
        def __call__(self, y_true, y_pred, sample_weight=None):
            return 3.0 * tf.reduce_mean(y_pred**2)

    loss, _ = _one_step(_plain, Own(), None, replicas(2))
    assert loss == pytest.approx(3 * SQUARES.mean())
