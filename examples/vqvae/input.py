"""Fashion-MNIST images in [0, 1], without labels."""

import tensorflow as tf
import tensorflow_datasets as tfds

from tfloss.data.tfds_prepare import prepared


def batches(
    data_dir: str, batch_size: int, seed: int
) -> tuple[tf.data.Dataset, tf.data.Dataset, tf.data.Dataset]:
    """Makes the data sets. TFDS downloads 30 MB on first use.

    Args:
      data_dir: The directory of TFDS.
      batch_size: The number of images in a training batch.
      seed: The seed of the training order.

    Returns:
      Endless training batches of 54,000 images; the 6,000 validation images once, which choose the
      weights to export; and the 10,000 test images once, which choose nothing. A batch is
      `{"image": float32 [n, 28, 28, 1]}`.
    """
    builder = prepared(lambda: tfds.builder("fashion_mnist", data_dir=data_dir))
    splits = builder.as_dataset(split=["train[:90%]", "train[90%:]", "test"])
    train, val, test = (split.map(_scaled) for split in splits)
    train = train.cache().shuffle(10_000, seed=seed).repeat()
    train = train.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    return train, val.batch(500).cache(), test.batch(500).cache()


def _scaled(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return {"image": tf.cast(example["image"], tf.float32) / 255.0}
