"""Fashion-MNIST images in [0, 1], without labels."""

import tensorflow as tf
import tensorflow_datasets as tfds

from tfloss.data.tfds_prepare import prepared


def batches(data_dir: str, batch_size: int, seed: int) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """Makes the data sets. TFDS downloads 30 MB on first use.

    Args:
      data_dir: The directory of TFDS.
      batch_size: The number of images in a training batch.
      seed: The seed of the training order.

    Returns:
      Endless training batches, and the 10,000 test images once. A batch is
      `{"image": float32 [n, 28, 28, 1]}`.
    """
    tfds.disable_progress_bar()
    builder = prepared(lambda: tfds.builder("fashion_mnist", data_dir=data_dir))
    train, test = builder.as_dataset(split=["train", "test"])
    train = train.map(_scaled).cache().shuffle(10_000, seed=seed).repeat()
    train = train.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    return train, test.map(_scaled).batch(500).cache()


def _scaled(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return {"image": tf.cast(example["image"], tf.float32) / 255.0}
