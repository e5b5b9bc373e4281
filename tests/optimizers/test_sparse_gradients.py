"""Rows that a batch looks up several times: the update is that of the dense gradient."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import optimizers

import tfloss
from tfloss.optimizers.sparse_gradients import in_form, sparse_form

OPTIMIZERS = {
    "Adam": lambda: optimizers.Adam(0.01),
    "amsgrad": lambda: optimizers.Adam(0.01, amsgrad=True),
    "AdamW": lambda: optimizers.AdamW(0.01, weight_decay=0.1),
    "Nadam": lambda: optimizers.Nadam(0.01),
    "Adamax": lambda: optimizers.Adamax(0.01),
    "Adagrad": lambda: optimizers.Adagrad(0.01),
    "Adagrad with decay": lambda: optimizers.Adagrad(0.01, weight_decay=0.1),
    "Adadelta": lambda: optimizers.Adadelta(1.0),
    "RMSprop": lambda: optimizers.RMSprop(0.01, momentum=0.9, centered=True),
    "SGD": lambda: optimizers.SGD(0.01),
    "SGD with decay": lambda: optimizers.SGD(0.01, weight_decay=0.1),
    "momentum": lambda: optimizers.SGD(0.01, momentum=0.9, nesterov=True),
    "Ftrl": lambda: optimizers.Ftrl(0.01),
    "Lion": lambda: optimizers.Lion(0.01),
    "Lamb": lambda: optimizers.Lamb(0.01),
    "Adafactor": lambda: optimizers.Adafactor(0.01),
    "Muon": lambda: optimizers.Muon(0.01),
    "ScheduleFreeAdamW": lambda: optimizers.ScheduleFreeAdamW(0.01),
    "clipnorm": lambda: optimizers.SGD(0.01, clipnorm=0.1),
    "clipvalue": lambda: optimizers.Adagrad(0.01, clipvalue=0.1),
    "global_clipnorm": lambda: optimizers.SGD(0.01, global_clipnorm=0.1),
}


def _gradients():
    """Ten gradients of 5 rows. Row 0 is listed most often, row 4 never."""
    rng = np.random.default_rng(0)
    for _ in range(10):
        rows = np.minimum(rng.zipf(1.5, 24) - 1, 3)
        values = tf.constant(rng.normal(size=(24, 3)), tf.float32)
        yield tf.IndexedSlices(values, tf.constant(rows), tf.constant([5, 3]))


def _updated(optimizer, form):
    variable = keras.Variable(np.linspace(-1, 1, 15).reshape(5, 3), dtype="float32")
    optimizer.build([variable])
    for gradient in _gradients():
        optimizer.apply([form(gradient, variable)], [variable])
    return variable.numpy()


@pytest.mark.promise(34)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_applies_the_update_of_the_dense_gradient(name):
    make = OPTIMIZERS[name]
    dense = _updated(make(), lambda g, v: tf.convert_to_tensor(g))
    both = (False, True)
    for form in {sparse_form(make(), norm=norm, static=one) for norm in both for one in both}:
        found = _updated(make(), lambda g, v, form=form: in_form(g, v, form))
        np.testing.assert_allclose(found, dense, atol=1e-6, err_msg=form)


@pytest.mark.promise(34)
@pytest.mark.upstream
@pytest.mark.parametrize("name", ["Adam", "Adagrad", "RMSprop", "AdamW", "Nadam", "Lamb"])
def test_keras_squares_each_entry_of_a_repeated_row(name):
    found = _updated(OPTIMIZERS[name](), lambda g, v: g)
    dense = _updated(OPTIMIZERS[name](), lambda g, v: tf.convert_to_tensor(g))
    assert np.abs(found - dense).max() > 1e-3


def test_what_is_merged_and_what_is_not():
    class Mine(optimizers.SGD):
        pass

    changed = optimizers.SGD()
    changed.update_step = lambda *_: None
    for optimizer, form in (
        (optimizers.SGD(), "repeated"),
        (optimizers.Adagrad(), "merged"),
        (optimizers.Adam(), "dense"),
        (Mine(), "dense"),
        (changed, "dense"),
    ):
        assert sparse_form(optimizer, norm=False, static=False) == form


def test_half_precision_is_summed_in_float32():
    # In bfloat16, 256 + 1 is 256.
    values = tf.ones([300, 1], tf.bfloat16)
    gradient = tf.IndexedSlices(values, tf.zeros([300], tf.int32), tf.constant([2, 1]))
    variable = keras.Variable(np.zeros((2, 1)), dtype="bfloat16")
    for form in ("repeated", "merged", "dense"):
        found = tf.convert_to_tensor(in_form(gradient, variable, form))
        assert found.dtype == tf.bfloat16
        assert float(found[0, 0]) == 300.0


@pytest.mark.parametrize("form", ["repeated", "merged", "dense"])
def test_indices_may_have_any_rank_and_no_dense_shape(form):
    values = tf.reshape(tf.range(8.0), [2, 2, 2])
    gradient = tf.IndexedSlices(values, tf.constant([[0, 2], [2, 2]]))
    found = in_form(gradient, keras.Variable(np.zeros((4, 2))), form)
    if form == "merged":
        order = np.argsort(found.indices)
        assert found.indices.numpy()[order].tolist() == [0, 2]
        assert found.values.numpy()[order].tolist() == [[0.0, 1.0], [12.0, 15.0]]
    elif form == "dense":
        assert found.numpy().tolist() == [[0.0, 1.0], [0.0, 0.0], [12.0, 15.0], [0.0, 0.0]]
    else:
        assert found is gradient


class _Lookup(keras.Model):
    """The mean of the rows of a table that a batch looks up. Row 0 begins with 0."""

    def __init__(self):
        super().__init__(name="lookup")
        self.table = keras.layers.Embedding(3, 1, embeddings_initializer="zeros", name="table")
        self.table.build(())

    def call(self, batch, training=False):
        return {"mean": tf.reduce_mean(self.table(batch["row"]))}


def _trained(optimizer, batches, steps, strategy, **options):
    with strategy.scope():
        trainer = tfloss.Trainer(
            _Lookup(), optimizer(), strategy=strategy, default_hooks=False, **options
        )
    data = tf.data.Dataset.from_tensor_slices({"row": np.asarray(batches, np.int32)})
    trainer.train(data.repeat(), steps=steps)
    return trainer.model.table.embeddings.numpy().ravel()


@pytest.mark.promise(34)
@pytest.mark.parametrize(
    ("count", "options"),
    [
        (1, {}),
        (1, {"jit": True}),
        (1, {"jit": "loop", "clip_norm": 1e6}),
        (1, {"clip_norm": 1e6}),
        (1, {"skip_nonfinite": True}),
        (1, {"precision": "mixed_float16"}),
        (1, {"accumulate": 2}),
        (1, {"fused_adam": False}),
        (2, {}),
        (2, {"jit": True}),
        (2, {"clip_norm": 1e6, "accumulate": 2}),
    ],
)
def test_a_row_that_occurs_64_times_is_one_row(count, options, replicas):
    # The gradient of row 0 is 1 at each step, in 64 entries of 1/64. Adam moves by its rate.
    found = _trained(
        lambda: optimizers.Adam(0.01), np.zeros((4, 64)), 10, replicas(count), **options
    )
    np.testing.assert_allclose(found, [-0.1, 0.0, 0.0], atol=1e-6)


@pytest.mark.promise(34)
@pytest.mark.parametrize(
    ("count", "options"),
    [(1, {}), (1, {"jit": "loop"}), (2, {"clip_norm": 1e6, "accumulate": 2})],
)
def test_adagrad_by_hand(count, options, replicas):
    found = _trained(
        lambda: optimizers.Adagrad(0.01), np.zeros((4, 64)), 10, replicas(count), **options
    )
    # The accumulator begins at 0.1, and grows by 1 at each step.
    expected = -0.01 * sum(1.0 / np.sqrt(0.1 + step) for step in range(1, 11))
    np.testing.assert_allclose(found, [expected, 0.0, 0.0], atol=1e-6)


@pytest.mark.promise(34)
@pytest.mark.parametrize(
    ("count", "options"), [(1, {}), (1, {"clip_norm": 1e6}), (2, {"accumulate": 2})]
)
def test_momentum_moves_rows_that_are_not_looked_up(count, options, replicas):
    def optimizer():
        return optimizers.SGD(0.1, momentum=0.9)

    many = options.get("accumulate", 1)
    batches = np.repeat([[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]], many, 0)
    found = _trained(optimizer, batches, 3, replicas(count), **options)
    # Row 1: 0.1 at the first step, then 0.09 and 0.081. Row 0: 0.1 at the second, then 0.19.
    np.testing.assert_allclose(found, [-0.29, -0.271, 0.0], atol=1e-6)


def test_a_users_own_optimizer_gets_a_dense_gradient(replicas):
    class Own(optimizers.SGD):
        def update_step(self, gradient, variable, learning_rate):
            assert isinstance(gradient, tf.Tensor)
            variable.assign_sub(gradient**2)

    found = _trained(lambda: Own(0.1), np.zeros((1, 64)), 1, replicas(1))
    np.testing.assert_allclose(found, [-1.0, 0.0, 0.0], atol=1e-6)
