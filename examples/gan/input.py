"""Fashion-MNIST in [-1, 1], without labels. Each test image comes with a latent vector."""

import tensorflow as tf
import tensorflow_datasets as tfds

from tfloss.data.tfds_prepare import prepared


def batches(
    data_dir: str, batch_size: int, latent: int, seed: int
) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """Makes the data sets. TFDS downloads 30 MB on first use.

    Args:
      data_dir: The directory of TFDS.
      batch_size: The number of images in a training batch.
      latent: The length of a latent vector.
      seed: The seed of the training order.

    Returns:
      Endless training batches `{"image": float32 [n, 28, 28, 1]}`; and 5,000 test images once, with
      the same latent vectors each time: `{"image": ..., "latent": float32 [n, latent]}`.
    """
    tfds.disable_progress_bar()
    builder = prepared(lambda: tfds.builder("fashion_mnist", data_dir=data_dir))
    train, test = builder.as_dataset(split=["train", "test[:50%]"])
    train = train.map(_scaled).cache().shuffle(10_000, seed=seed).repeat()
    train = train.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    numbers = tf.data.Dataset.range(test.cardinality())
    draw = numbers.map(lambda i: tf.random.stateless_normal([latent], [0, i]))
    test = tf.data.Dataset.zip(test.map(_scaled), draw)
    return train, test.map(lambda one, z: {**one, "latent": z}).batch(250).cache()


def _scaled(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return {"image": tf.cast(example["image"], tf.float32) / 127.5 - 1.0}
