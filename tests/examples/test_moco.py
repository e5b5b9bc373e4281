"""MoCo: its loss and queue by hand, the same on any number of replicas."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tests.examples.harness import (
    assert_same,
    load,
    load_without_tfloss,
    train_a_little,
    train_resume_and_export,
)
from tests.examples.test_fashion import stand_in


def _make(**options):
    model = load("moco/model.py")
    return lambda: model.Moco(**{"width": 8, "size": 4, "queue": 24, **options})


def _data(steps=5, n=8):
    views = np.random.RandomState(0).rand(2, steps, n, 28, 28, 1).astype(np.float32)
    return tf.data.Dataset.from_tensor_slices({"query": views[0], "key": views[1]})


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_weights_queue_and_momentum_encoder_are_those_of_one_replica(count, replicas):
    one = train_a_little(_make(), _data(), replicas(1), steps=5)
    assert_same(one, train_a_little(_make(), _data(), replicas(count), steps=5))


@pytest.mark.slow  # the same of the penguins is quick
def test_xla_gives_the_same_on_one_replica(replicas):
    one = train_a_little(_make(), _data(), replicas(1), steps=5)
    assert_same(one, train_a_little(_make(), _data(), replicas(1), steps=5, jit=True))


def test_the_loss_by_hand():
    moco = _make(queue=2, size=2, temperature=0.5)()
    moco.queue.assign([[0.0, 1.0], [-1.0, 0.0]])
    q = tf.constant([[1.0, 0.0], [0.0, 1.0]])
    k = tf.constant([[1.0, 0.0], [0.6, 0.8]])
    loss, right = moco.contrast(q, k)
    first = math.log(math.exp(2) + math.exp(0) + math.exp(-2)) - 2
    second = math.log(math.exp(1.6) + math.exp(2) + math.exp(0)) - 1.6
    np.testing.assert_allclose(loss, (first + second) / 2, rtol=1e-6)
    assert right == 0.5


def test_the_oldest_keys_make_place():
    moco = _make(queue=5, size=2)()
    before = moco.queue.numpy()
    moco.enqueue(tf.fill([3, 2], 1.0))
    np.testing.assert_array_equal(moco.queue[:3], 1.0)
    np.testing.assert_array_equal(moco.queue[3:], before[3:])
    moco.enqueue(tf.fill([3, 2], 2.0))
    np.testing.assert_array_equal(moco.queue[:, 0], [2, 1, 1, 2, 2])
    assert int(moco.next) == 1


def test_the_momentum_encoder_follows_and_is_not_trained():
    moco = _make()()
    pairs = list(zip(moco.encoder.weights, moco.slow_encoder.weights, strict=True))
    for fast, slow in pairs:
        np.testing.assert_array_equal(fast, slow)  # they begin together
        fast.assign_add(tf.ones_like(fast))
    moco.follow(0.75)
    for fast, slow in pairs:
        np.testing.assert_allclose(fast - slow, 0.75, rtol=1e-5)
    assert len(moco.trainable_weights) == len(moco.encoder.weights + moco.projection.weights)


def test_views_depend_on_their_seed_and_stay_pictures():
    view = load("moco/input.py").view
    image = tf.constant(np.random.RandomState(0).rand(50, 28, 28, 1), tf.float32)
    first, again, other = (view(image, tf.constant([1, s], tf.int64)) for s in (2, 2, 3))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.shape == image.shape
    assert 0 <= first.numpy().min() and first.numpy().max() <= 1


def test_the_probe_finds_what_is_linear_and_nothing_in_noise():
    random = np.random.RandomState(0)
    label = random.randint(0, 3, 600)
    tests = np.arange(600) >= 400
    for features, low, high in (
        (np.eye(3)[label] + 0.1 * random.randn(600, 3), 0.99, 1.0),
        (random.randn(600, 3), 0.2, 0.47),
    ):
        probe = load("moco/probe.py").LinearProbe()
        for part in np.split(np.arange(600), 6):
            batch = {"label": label[part], "tests": tests[part]}
            probe.update(batch, {"features": features[part]})
        assert low <= probe.result() <= high


@pytest.mark.slow  # its quick siblings: the same of digits and penguins
def test_from_start_to_saved_model(tmp_path):
    stand_in(tmp_path / "data")
    small = [f"--config.data_dir={tmp_path / 'data'}", "--config.model.width=8"]
    small += ["--config.batch_size=8", "--config.model.queue=64"]

    path, found = train_resume_and_export("moco/train.py", "moco", tmp_path, small)

    assert 0 <= found["test/probe"] <= 1
    shapes = load_without_tfloss(path, {"image": ([3, 28, 28, 1], "float32")})
    assert shapes == {"features": [3, 32]}
