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


def test_a_loss_with_its_own_reduction_is_that_of_the_batch(replicas):
    class Own(keras.losses.Loss):
        def __call__(self, y_true, y_pred, sample_weight=None):
            return tf.reduce_sum(y_pred**2) / tf.reduce_sum(tf.abs(y_pred))

    loss, w = _one_step(_plain, Own(), None, replicas(2))
    expected = SQUARES.sum() / np.abs(X).sum()  # at w = 1; it is in proportion to w
    assert loss == pytest.approx(expected)
    assert w == pytest.approx(1 - 0.01 * expected)


def _scalar_dice(y_true, y_pred):
    both = tf.reduce_sum(y_true * y_pred)
    return 1 - 2 * both / (tf.reduce_sum(y_true) + tf.reduce_sum(y_pred))


# Few positives in the first two examples, and many in the last three.
MASKS = np.float32([[0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 0]])
SCORES = np.float32(np.random.default_rng(0).uniform(0.1, 0.9, MASKS.shape))
BATCH_LOSSES = {
    "Dice": lambda: keras.losses.Dice(),
    "Dice of each class": lambda: keras.losses.Dice(axis=(0,)),
    "Tversky": lambda: keras.losses.Tversky(alpha=0.3, beta=0.7),
    "dice": lambda: "dice",
    "a function": lambda: _scalar_dice,
}


def _train_scores(loss, strategy, **options):
    """Returns the loss of a step on SCORES, the validation loss and the weights after it."""
    with strategy.scope():
        net = keras.Sequential([keras.layers.Dense(4, kernel_initializer="identity")])
        model, optimizer = supervised(net, loss), keras.optimizers.SGD(0.5)
    data = tf.data.Dataset.from_tensor_slices((SCORES, MASKS)).batch(5)
    options = {"jit": False, "default_hooks": False, **options}
    trainer = tfloss.Trainer(model, optimizer, strategy=strategy, **options)
    losses = trainer.train(data.repeat(), steps=1).losses
    evaluated = trainer.evaluate(data, losses=True)["losses/total"]
    return losses["total"], evaluated, net.get_weights()


@pytest.mark.promise(41)
@pytest.mark.parametrize("case", BATCH_LOSSES)
def test_a_loss_of_the_whole_batch_is_that_of_one_replica(case, replicas):
    make = BATCH_LOSSES[case]
    one = _train_scores(make(), replicas(1))
    two = _train_scores(make(), replicas(2))  # 3 examples and 2
    loss = _scalar_dice(MASKS, SCORES) if case in ("a function", "Dice", "dice") else one[0]
    assert one[0] == pytest.approx(float(loss), rel=1e-5)
    assert two[:2] == pytest.approx(one[:2], rel=1e-5)
    for a, b in zip(one[2], two[2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.promise(41)
@pytest.mark.upstream
def test_fit_computes_dice_of_each_replica(replicas):
    values = []
    for count in (1, 2):
        with replicas(count).scope():
            net = keras.Sequential([keras.layers.Dense(4, kernel_initializer="identity")])
            net.compile(optimizer=keras.optimizers.SGD(0.5), loss=keras.losses.Dice())
        net.fit(tf.data.Dataset.from_tensors((SCORES[1:], MASKS[1:])), verbose=0)
        values.append(net.get_weights()[0])
    assert np.abs(values[0] - values[1]).max() > 1e-3


def test_circle_loss_compares_the_examples_of_all_replicas(replicas):
    labels = np.int32([0, 1, 0, 1, 1])
    values = []
    for count in (1, 2):
        strategy = replicas(count)
        with strategy.scope():
            net = keras.Sequential([keras.layers.Dense(4, kernel_initializer="identity")])
            model = supervised(net, keras.losses.Circle(gamma=2.0))
            optimizer = keras.optimizers.SGD(0.5)
        data = tf.data.Dataset.from_tensor_slices((SCORES, labels)).batch(5)
        options = {"strategy": strategy, "default_hooks": False, "jit": False}
        trainer = tfloss.Trainer(model, optimizer, **options)
        values.append((trainer.train(data, steps=1).losses["total"], net.get_weights()[0]))
    assert values[1][0] == pytest.approx(values[0][0], rel=1e-5)
    np.testing.assert_allclose(values[1][1], values[0][1], rtol=1e-4, atol=1e-6)


@pytest.mark.promise(56)
@pytest.mark.parametrize("activation", [keras.activations.softmax, tf.nn.softmax])
def test_a_cross_entropy_of_the_whole_batch_is_computed_of_the_logits(activation, replicas):
    """The probabilities are rounded to 0 and 1, so that they have no gradient."""
    logits, labels = np.float32([[0, 50], [20, 0], [0, 0]]), np.float32([[1, 0], [0, 1], [0, 1]])
    kernel = np.eye(2, dtype=np.float32)
    probabilities = np.float32([[0, 1], [1, 0], [0.5, 0.5]])
    for count in (1, 2):
        with (strategy := replicas(count)).scope():
            dense = keras.layers.Dense(2, activation, False, kernel_initializer="identity")
            loss = lambda y, p: tf.reduce_mean(keras.losses.categorical_crossentropy(y, p))  # noqa: E731
            model, optimizer = (
                supervised(keras.Sequential([dense]), loss),
                keras.optimizers.SGD(1.0),
            )
        trainer = tfloss.Trainer(
            model, optimizer, strategy=strategy, default_hooks=False, jit=False
        )
        data = tf.data.Dataset.from_tensors((logits, labels))
        total = trainer.train(data, steps=1).losses["total"]
        assert total == pytest.approx((50 + 20 + np.log(2)) / 3)
        expected = kernel - logits.T @ (probabilities - labels) / 3
        np.testing.assert_allclose(dense.kernel, expected, rtol=1e-5)


@pytest.mark.parametrize(("count", "options"), [(1, {"accumulate": 2}), (2, {"jit": True})])
def test_a_loss_of_the_whole_batch_is_refused_where_there_is_none(count, options, replicas):
    with pytest.raises(LossError, match="'dice' is one value for the whole batch.*accumulate"):
        _train_scores(keras.losses.Dice(), replicas(count), **options)
    # Each example has its own value.
    _train_scores(keras.losses.Dice(axis=-1), replicas(count), **options)


def test_means_of_vectors_need_no_whole_batch(replicas):
    net = lambda: keras.Sequential([keras.layers.Dense(1), keras.layers.Reshape(())])  # noqa: E731
    found = []
    for count in (1, 2):
        keras.utils.set_random_seed(0)
        with (strategy := replicas(count)).scope():
            model, optimizer = supervised(net(), "mse"), keras.optimizers.SGD(0.1)
        data = tf.data.Dataset.from_tensor_slices((SCORES, MASKS[:, 0])).batch(5)
        options = {"strategy": strategy, "default_hooks": False, "jit": True}
        trainer = tfloss.Trainer(model, optimizer, **options)
        found.append(trainer.train(data, steps=1).losses["total"])
    assert found[1] == pytest.approx(found[0], rel=1e-6)
