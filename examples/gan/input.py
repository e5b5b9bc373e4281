"""Fashion-MNIST in [-1, 1], without labels. Images of an evaluation come with latent vectors."""

import tensorflow as tf
import tensorflow_datasets as tfds

from tfloss.data.tfds_prepare import prepared


def batches(
    data_dir: str, batch_size: int, latent: int, seed: int
) -> tuple[tf.data.Dataset, tf.data.Dataset, tf.data.Dataset]:
    """Makes the data sets. TFDS downloads 30 MB on first use.

    Args:
      data_dir: The directory of TFDS.
      batch_size: The number of images in a training batch.
      latent: The length of a latent vector.
      seed: The seed of the training order.

    Returns:
      Endless training batches `{"image": float32 [n, 28, 28, 1]}` of 54,000 images; 6,000
      validation images once, which choose the generator to export; and 5,000 test images once,
      which choose nothing. Both come with the same latent vectors each time:
      `{"image": ..., "latent": float32 [n, latent]}`.
    """
    builder = prepared(lambda: tfds.builder("fashion_mnist", data_dir=data_dir))
    splits = builder.as_dataset(split=["train[:90%]", "train[90%:]", "test[:50%]"])
    train, val, test = (split.map(_scaled) for split in splits)
    train = train.cache().shuffle(10_000, seed=seed).repeat()
    train = train.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    return train, _with_latents(val, latent), _with_latents(test, latent)


def _with_latents(images: tf.data.Dataset, latent: int) -> tf.data.Dataset:
    numbers = tf.data.Dataset.range(images.cardinality())
    draw = numbers.map(lambda i: tf.random.stateless_normal([latent], [0, i]))
    pairs = tf.data.Dataset.zip(images, draw)
    return pairs.map(lambda one, z: {**one, "latent": z}).batch(250).cache()


def _scaled(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return {"image": tf.cast(example["image"], tf.float32) / 127.5 - 1.0}
