"""The GAN: its losses by hand, whose they are, and from start to SavedModel."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.examples.harness import (
    load,
    load_without_tfloss,
    results,
    run,
    train_resume_and_export,
)
from tests.examples.test_fashion import stand_in


def _gan(**options):
    model = load("gan/model.py")
    return model, model.Gan(latent=4, width=8, **options)


def _images(n=8):
    return np.random.RandomState(0).rand(n, 28, 28, 1).astype(np.float32) * 2 - 1


def test_losses_by_hand_with_a_linear_discriminator():
    _, gan = _gan(r1=0.5)
    linear = keras.Sequential([keras.Input([28, 28, 1]), keras.layers.Flatten()])
    linear.add(keras.layers.Dense(1, use_bias=False))
    weight = np.random.RandomState(1).randn(784, 1).astype(np.float32) * 0.01
    linear.set_weights([weight])
    gan.discriminator = linear
    real, fake = _images(3), _images(5)[3:]

    judged = gan.judge(tf.constant(real), tf.constant(fake))
    fooled = gan.fool(tf.constant(fake))

    logits, fakes = (x.reshape(-1, 784) @ weight for x in (real, fake))
    softplus = lambda x: np.mean(np.log1p(np.exp(x)))  # noqa: E731
    np.testing.assert_allclose(judged["real"], softplus(-logits), rtol=1e-5)
    np.testing.assert_allclose(judged["fake"], softplus(fakes), rtol=1e-5)
    np.testing.assert_allclose(fooled["fool"], softplus(-fakes), rtol=1e-5)
    # The gradient in each picture is the weight itself.
    np.testing.assert_allclose(judged["r1"], 0.5 * (weight**2).sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("count", "jit", "alternating"),
    [
        (1, False, False),
        (1, False, True),
        (2, False, True),
        pytest.param(1, True, True, marks=pytest.mark.slow),
        pytest.param(2, False, False, marks=pytest.mark.slow),
        pytest.param(1, True, False, marks=pytest.mark.slow),
    ],
)
def test_each_loss_trains_its_own_group(alternating, count, jit, replicas):
    strategy = replicas(count)
    with strategy.scope():
        module, gan = _gan()
        groups = {
            "generator": (keras.optimizers.SGD(0.0), gan.generator),
            "discriminator": (keras.optimizers.SGD(0.1), gan.discriminator),
        }
    before = [w.numpy() for w in gan.generator.weights]
    judged = [w.numpy() for w in gan.discriminator.weights]
    step = module.AlternatingStep if alternating else tfloss.TrainStep
    trainer = tfloss.Trainer(gan, groups, train_step=step, strategy=strategy, jit=jit)
    data = tf.data.Dataset.from_tensors({"image": _images()}).repeat()
    names = set(trainer.train(data, 2).losses)

    assert names - {"total"} == (
        {"fool", "real", "fake", "r1"}
        if alternating
        else {"generator/fool", "discriminator/real", "discriminator/fake", "discriminator/r1"}
    )
    for old, new in zip(before, gan.generator.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    changed = [
        not np.array_equal(old, new)
        for old, new in zip(judged, gan.discriminator.weights, strict=True)
    ]
    assert all(changed)


def test_frechet_by_hand():
    frechet = load("gan/score.py").frechet
    random = np.random.RandomState(0)
    sample = random.randn(500, 6)
    assert abs(frechet(sample, sample)) < 1e-6
    np.testing.assert_allclose(frechet(sample, sample + 2.0), 6 * 4, rtol=1e-6)
    # Scaled by 3: per dimension (3 s - s)^2 along the same axes, which is 4 trace(C).
    centred = sample - sample.mean(0)
    expected = 4 * np.trace(np.cov(centred, rowvar=False))
    np.testing.assert_allclose(frechet(centred, 3 * centred), expected, rtol=1e-6)


def test_the_grid_keeps_pictures_in_order():
    images = np.arange(64, dtype=np.float32)[:, None, None, None] * np.ones([1, 3, 2, 1]) / 64
    drawn = load("gan/model.py").grid(images)
    assert drawn.shape == (1, 24, 16, 1)
    np.testing.assert_allclose(drawn[0, ::3, ::2, 0].ravel() * 2 - 1, np.arange(64) / 64, atol=1e-6)


@pytest.mark.slow  # its quick siblings: the same of digits and penguins
def test_from_start_to_saved_model(tmp_path):
    stand_in(tmp_path / "data")
    small = [f"--config.data_dir={tmp_path / 'data'}", "--config.model.width=8"]
    small += ["--config.batch_size=8", "--config.alternating"]

    path, found = train_resume_and_export("gan/train.py", "gan", tmp_path, small)

    assert found["test/frechet"] > 0
    shapes = load_without_tfloss(path, {"latent": ([3, 64], "float32")})
    assert shapes == {"image": [3, 28, 28, 1]}


@pytest.mark.slow
def test_what_is_drawn_comes_nearer_to_what_is_real(tmp_path):
    stand_in(tmp_path / "data", examples=600)
    flags = [f"--config.data_dir={tmp_path / 'data'}", "--config.model.width=8"]
    begun = results(run("gan/train.py", "gan", tmp_path / "run", *flags, "--max_steps=1"))
    ended = results(run("gan/train.py", "gan", tmp_path / "run", *flags, "--max_steps=800"))
    assert ended["test/frechet"] < 0.1 * begun["test/frechet"]
