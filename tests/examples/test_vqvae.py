"""The autoencoders: codes and divergence by hand, the same on any number of replicas."""

import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.examples.harness import (
    assert_same,
    load,
    load_without_tfloss,
    results,
    run,
    train_a_little,
    train_resume_and_export,
)
from tests.examples.test_fashion import stand_in


def _data(steps=4, n=8):
    images = np.random.RandomState(0).rand(steps, n, 28, 28, 1).astype(np.float32)
    return tf.data.Dataset.from_tensor_slices({"image": images})


def _quantizer(**options):
    quantizer = load("vqvae/model.py").Quantizer(**{"codes": 3, "channels": 2, **options})
    quantizer.build([None, None, None, 2])
    quantizer.book.assign([[0.0, 0.0], [1.0, 0.0], [5.0, 5.0]])
    return quantizer


@pytest.mark.parametrize(
    ("count", "jit"), [(2, False), (1, True), pytest.param(4, False, marks=pytest.mark.slow)]
)
def test_weights_and_codes_are_those_of_one_replica(count, jit, replicas):
    module = load("vqvae/model.py")

    def make():
        return module.Autoencoder(module.Quantizer(codes=8, channels=4), width=8)

    one = train_a_little(make, _data(), replicas(1), steps=4)
    assert set(one[0]) == {"reconstruction", "autoencoder/quantizer/commitment", "total"}
    assert_same(one, train_a_little(make, _data(), replicas(count), steps=4, jit=jit))


def test_the_nearest_code_is_taken_and_the_gradient_passes_through():
    quantizer = _quantizer()
    z = tf.Variable([[[[0.2, 0.1], [0.9, 0.3]]]])
    with tf.GradientTape() as tape:
        found, extra = quantizer(z)
        total = tf.reduce_sum(found * [[[[1.0, 2.0], [3.0, 4.0]]]])
    np.testing.assert_array_equal(extra["codes"], [[[0, 1]]])
    np.testing.assert_allclose(found, [[[[0, 0], [1, 0]]]], atol=1e-6)
    np.testing.assert_array_equal(tape.gradient(total, z), [[[[1, 2], [3, 4]]]])


def test_a_code_becomes_the_running_mean_of_its_vectors():
    quantizer = _quantizer(decay=0.5, revive=0.0)
    quantizer.sums.assign(quantizer.book)  # counts are 1
    flat = tf.constant([[0.2, 0.0], [0.0, 0.4], [1.0, 1.0]])
    quantizer.learn(flat, tf.constant([0, 0, 1]))
    np.testing.assert_allclose(quantizer.counts, [1.5, 1.0, 0.5])
    # sums: half of the old ones, and half of (0.2, 0.4), (1, 1), 0.
    expected = [[0.1 / 1.5, 0.2 / 1.5], [1.0, 0.5], [5.0, 5.0]]
    np.testing.assert_allclose(quantizer.book, expected, rtol=1e-6)


def test_a_code_that_nobody_is_near_to_is_put_where_somebody_is():
    quantizer = _quantizer(decay=0.5, revive=0.8)
    flat = tf.constant([[0.2, 0.0], [0.0, 0.4], [1.0, 1.0]])
    quantizer.learn(flat, tf.constant([0, 0, 1]))
    assert quantizer.book.numpy()[2].tolist() in flat.numpy().tolist()
    assert float(quantizer.counts[2]) == 1.0


def test_the_divergence_by_hand_and_its_annealing():
    gaussian = load("vqvae/model.py").Gaussian(size=1, beta=0.5, anneal=4)
    z = tf.constant([[[[2.0, 0.0]]], [[[0.0, np.log(4.0)]]]])  # N(2, 1) and N(0, 4)
    mean, _ = gaussian(z)
    np.testing.assert_array_equal(mean[:, 0, 0, 0], [2, 0])

    class Net(tf.keras.Model):
        def __init__(self):
            super().__init__(name="net")
            self.gaussian = gaussian
            self.w = self.add_weight(shape=(), initializer="ones")

        def call(self, batch, training=False):
            self.gaussian(z * self.w, training=training)
            return {"zero": 0.0 * self.w}

    trainer = tfloss.Trainer(Net(), tf.keras.optimizers.SGD(0.0), log_every=1)
    data = tf.data.Dataset.from_tensors(tf.zeros([2, 1])).repeat()
    divergence = ((4 + 1 - 1) / 2 + (4 - 1 - np.log(4)) / 2) / 2
    for step, grown in ((1, 0.0), (2, 0.25), (4, 0.75), (8, 1.0)):
        losses = trainer.train(data, step).losses
        (found,) = (value for name, value in losses.items() if name.endswith("divergence"))
        np.testing.assert_allclose(found, 0.5 * grown * divergence / 784, rtol=1e-5, atol=1e-9)


@pytest.mark.slow  # its quick siblings: the same of digits and penguins
def test_from_start_to_saved_model(tmp_path):
    stand_in(tmp_path / "data")
    small = [f"--config.data_dir={tmp_path / 'data'}", "--config.width=8", "--config.batch_size=8"]

    path, found = train_resume_and_export("vqvae/train.py", "vqvae", tmp_path, small)

    assert found["test/squared_error"] > 0
    shapes = load_without_tfloss(path, {"image": ([3, 28, 28, 1], "float32")})
    assert shapes == {"reconstruction": [3, 28, 28, 1], "codes": [3, 7, 7]}


@pytest.mark.slow
@pytest.mark.parametrize("bottleneck", ["quantizer", "gaussian"])
def test_it_reconstructs(bottleneck, tmp_path):
    stand_in(tmp_path / "data", examples=500)
    small = [f"--config.data_dir={tmp_path / 'data'}", "--config.width=16", "--max_steps=300"]
    small += [f"--config.bottleneck={bottleneck}"]
    found = results(run("vqvae/train.py", "vqvae", tmp_path / "run", *small))
    assert found["test/squared_error"] < 0.01
