"""What `fit` takes is trained on as `fit` does, resumed exactly, on one and on two replicas."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tfloss.data.adapted import adapted
from tfloss.data.batch_source import BatchSource
from tfloss.data.source import Source
from tfloss.errors import DataError
from tfloss.hooks import Evaluate, Every, Hook, SaveCheckpoint

_RANDOM = np.random.default_rng(0)
X, Y = _RANDOM.normal(size=[48, 3]), _RANDOM.normal(size=[48, 1])


class Batches(keras.utils.PyDataset):
    def __init__(self, x=X, y=Y, **options):
        super().__init__(**options)
        self.x, self.y = x, y

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return self.x[8 * index :][:8], self.y[8 * index :][:8]


def in_order():
    for index in range(6):
        yield [X[8 * index :][:8], Y[8 * index :][:8]]


def table():
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame({"a": X[:, 0], "b": X[:, 1], "c": X[:, 2], "y": Y[:, 0]})


def loader(torch=None, **options):
    torch = pytest.importorskip("torch")

    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return 48

        def __getitem__(self, index):
            return torch.from_numpy(X[index]) + torch.rand(3), torch.from_numpy(Y[index])

    return torch.utils.data.DataLoader(Noisy(), batch_size=8, shuffle=True, **options)


KINDS = {
    "arrays": (lambda: (X, Y), {"batch_size": 10}),
    "PyDataset": (Batches, {}),
    "generator function": (lambda: in_order, {}),
    "table": (table, {"batch_size": 10}),
    "loader": (loader, {}),
}


class Columns(keras.Model):
    """Takes the columns of the table, and calls the net with the inputs of `fit`."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def call(self, batch, training=False):
        if isinstance(batch, dict):
            x = tf.stack([batch[name] for name in "abc"], 1)
            batch = x, batch["y"][:, tf.newaxis]
        return self.net(batch, training=training)


class Stop(Hook):
    every = Every(steps=7)

    def after_step(self, step):
        self.trainer.stop("test")


def net():
    keras.utils.set_random_seed(1)
    dense = keras.layers.Dense
    return keras.Sequential([keras.Input([3]), dense(4, "tanh"), dense(1)])


def trained(data, steps=15, hooks=(), strategy=None, workdir=None, **options):
    keras.backend.clear_session()
    with (strategy or tf.distribute.get_strategy()).scope():
        model = net()
        trainer = tfloss.Trainer(
            Columns(tfloss.adapters.supervised(model, "mse")),
            keras.optimizers.SGD(0.1, momentum=0.9),
            seed=3, jit=False, default_hooks=False, workdir=workdir, strategy=strategy,
        )  # fmt: skip
        trainer.train(data, steps, hooks=hooks, **options)
    return trainer, [one.numpy() for one in model.trainable_variables]


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=pytest.mark.slow) if k == "table" else k for k in KINDS],  # as arrays
)
def test_each_kind_is_resumed_to_the_bit_and_the_same_on_two_replicas(kind, replicas, tmp_path):
    make, options = KINDS[kind]
    trainer, whole = trained(make(), **options)
    # A steps_per_epoch of 6 and a batch size of 10 cut both in the middle of an epoch.
    hooks = [SaveCheckpoint(Every(steps=100))]
    trained(make(), hooks=[Stop(), *hooks], workdir=tmp_path, **options)
    resumed = trained(make(), hooks=hooks, workdir=tmp_path, **options)[1]
    for a, b in zip(whole, resumed, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(whole, trained(make(), strategy=replicas(2), **options)[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert trainer.inspect(make(), **options).batch_size == options.get("batch_size", 8)
    assert trainer.evaluate(make(), {"examples": Count()}, **options) == {"examples": 48}


class Count:
    def reset(self):
        self.found = 0

    def update(self, batch, predictions):
        self.found += len(predictions)

    def result(self):
        return self.found


def fitted(batches_or_arrays, epochs, **options):
    model = net()
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse", jit_compile=False)
    for data in batches_or_arrays:
        arrays = data if isinstance(data, tuple) else (data,)
        model.fit(*arrays, epochs=epochs, shuffle=False, verbose=0, **options)
    return [one.numpy() for one in model.trainable_variables]


def test_the_weights_are_those_of_fit_to_the_bit():
    # In the order of the arrays, and float64 becomes float32 in both.
    source = Source(tuple(np.float32(one) for one in (X, Y)), batch_size=8, shuffle=False)
    ours = trained(source, 12)[1]
    for a, b in zip(ours, fitted([(X, Y)], 2, batch_size=8), strict=True):
        np.testing.assert_array_equal(a, b)
    # In the order in which arrays are shuffled: `Source`'s, by the seed of the trainer.
    order = [one.numpy() for one in Source(np.arange(48), batch_size=48, seed=3).dataset().take(2)]
    assert sorted(order[0]) == list(range(48)) and not np.array_equal(*order)
    ours = trained((X, Y), None, epochs=2, batch_size=8)[1]
    for a, b in zip(ours, fitted([(X[i], Y[i]) for i in order], 1, batch_size=8), strict=True):
        np.testing.assert_array_equal(a, b)
    # A PyDataset's batches are shuffled in the same way.
    order = [one.numpy() for one in Source(np.arange(6), batch_size=6, seed=3).dataset().take(2)]
    rows = [np.concatenate([np.arange(8) + 8 * i for i in one]) for one in order]
    ours = trained(Batches(), None, epochs=2)[1]
    for a, b in zip(ours, fitted([Batches(X[i], Y[i]) for i in rows], 1), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_same_arrays_continue_and_others_begin():
    first, _ = trained((X, Y), 3, batch_size=10)
    first.train((X, Y), 15, batch_size=10)
    whole = trained((X, Y), 15, batch_size=10)[1]
    for a, b in zip(whole, first.model.trainable_variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_hooks_and_restore_take_them(tmp_path):
    hooks = [Evaluate((X, Y), {}, losses=True, batch_size=7), SaveCheckpoint(Every(steps=100))]
    trainer, weights = trained((X, Y), 5, hooks=hooks, workdir=tmp_path, batch_size=10)
    assert hooks[0].results_at(5)["losses/total"] == pytest.approx(
        trainer.evaluate(Batches(), losses=True)["losses/total"], rel=1e-5
    )
    keras.backend.clear_session()
    model = Columns(tfloss.adapters.supervised(net(), "mse"))
    assert tfloss.Trainer(model, workdir=tmp_path, default_hooks=False).restore((X, Y)) == 5
    for a, b in zip(weights, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_they_become():
    assert isinstance(adapted((X, Y), 8), Source) and isinstance(adapted(Batches()), BatchSource)
    in_training, once = adapted(X, 9, training=True), adapted(X, 9)
    assert in_training.identity() | once.identity() == once.identity() | {
        "shuffle": False, "epochs": 1,
    }  # fmt: skip
    assert in_training.identity()["shuffle"] and in_training.identity()["epochs"] is None
    assert once.cardinality == 6 and once.element_spec.dtype == tf.float32
    data = tf.data.Dataset.range(3)
    assert adapted(data) is data and adapted(Batches) is Batches
    assert adapted(([X, Y], {"n": [1] * 48}), 8).element_spec[0][1].shape == [8, 1]
    with pytest.raises(DataError, match="batch_size=32"):
        adapted({"x": X})
    with pytest.raises(DataError, match="Batches has batches already"):
        adapted(Batches(), 8)
