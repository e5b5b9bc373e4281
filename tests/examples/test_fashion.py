"""Plain classification: the model's form of the labels, and a stand-in of Fashion-MNIST."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tests.examples.harness import (
    assert_same,
    load,
    load_without_tfloss,
    results,
    run,
    train_a_little,
    train_resume_and_export,
)


def stand_in(data_dir, examples=200):
    """What TFDS's own fashion_mnist reads from `data_dir`: noise, brighter by class."""
    random = np.random.RandomState(0)
    features = tfds.builder("fashion_mnist", data_dir=data_dir).info.features

    def split(seed):
        for i in range(examples):
            image = random.randint(0, 60, [28, 28, 1]) + 15 * (i % 10)
            yield seed * examples + i, {"image": image.astype(np.uint8), "label": i % 10}

    tfds.dataset_builders.store_as_tfds_dataset(
        "fashion_mnist",
        "3.0.1",
        features=features,
        data_dir=data_dir,
        split_datasets={"train": list(split(0)), "test": list(split(1))},
    )


def _make(representation):
    model = load("fashion/model.py")
    net = tf.keras.Sequential([tf.keras.layers.Flatten(), tf.keras.layers.Dense(8, "relu")])
    return lambda: model.Classifier(tf.keras.models.clone_model(net), representation=representation)


def _data():
    random = np.random.RandomState(0)
    batch = {
        "image": random.randint(0, 255, [4, 8, 28, 28, 1]).astype(np.uint8),
        "label": random.randint(0, 10, [4, 8]),
    }
    return tf.data.Dataset.from_tensor_slices(batch)


@pytest.mark.parametrize("jit", [False, True])
def test_two_replicas_are_one(jit, replicas):
    one = train_a_little(_make("sparse"), _data(), replicas(1))
    assert_same(one, train_a_little(_make("sparse"), _data(), replicas(2), jit=jit))


def test_both_forms_of_the_labels_are_the_same_loss_where_nothing_is_mixed():
    batch = next(iter(_data()))
    sparse, one_hot = _make("sparse")(), _make("one_hot")()
    one_hot.mixed = lambda image, target: (image, target)
    for model in (sparse, one_hot):
        model(batch, training=True)
    one_hot.set_weights(sparse.get_weights())
    first, second = (m(batch, training=True)["cross_entropy"] for m in (sparse, one_hot))
    np.testing.assert_allclose(first, second, rtol=1e-6)
    with pytest.raises(ValueError, match="representation is 'sparse' or 'one_hot'"):
        _make("dense")()


def test_pictures_and_labels_are_mixed_alike():
    model = _make("one_hot")()
    label = tf.one_hot([0, 1, 2, 3] * 50, 4)
    image = tf.tile(label[:, tf.newaxis, tf.newaxis], [1, 3, 3, 1])
    mixed, target = model.mixed(image, label)
    np.testing.assert_allclose(mixed[:, 1, 1], target, atol=1e-6)
    np.testing.assert_allclose(tf.reduce_sum(target, -1), 1.0, rtol=1e-6)
    largest = tf.reduce_max(target, -1).numpy()
    assert largest.min() >= 0.5 and 0.5 < (largest == 1).mean() < 0.9
    np.testing.assert_array_equal(tf.argmax(target, -1), tf.argmax(label, -1))


@pytest.mark.slow  # its quick siblings: the same of digits and penguins
def test_from_start_to_saved_model(tmp_path):
    stand_in(tmp_path / "data")
    small = [f"--config.data_dir={tmp_path / 'data'}", "--config.net.width=4"]
    small += ["--config.representation=one_hot", "--config.batch_size=16"]

    path, found = train_resume_and_export("fashion/train.py", "fashion", tmp_path, small)

    assert set(found) == {"test/accuracy"}
    shapes = load_without_tfloss(path, {"image": ([3, 28, 28, 1], "uint8")})
    assert shapes == {"probabilities": [3, 10]}


@pytest.mark.slow
def test_a_model_of_keras_applications_trains_unchanged(tmp_path):
    stand_in(tmp_path / "data")
    small = [f"--config.data_dir={tmp_path / 'data'}", "--config.application.side=32"]
    small += ["--config.batch_size=16", "--max_steps=2"]
    found = results(run("fashion/train.py", "fashion_mobilenet", tmp_path / "run", *small))
    assert 0 <= found["test/accuracy"] <= 1
