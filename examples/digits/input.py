"""The digits in batches: shuffled and augmented for training, unchanged for evaluation."""

import tensorflow as tf

from tfloss.data import Source
from tfloss.data.tfds_prepare import prepared
from tfloss.datasets.digits import Digits


def batches(
    data_dir: str, batch_size: int, seed: int
) -> tuple[Source, tf.data.Dataset, tf.data.Dataset]:
    """Makes the data sets. The builder prepares the digits on first use.

    Args:
      data_dir: The directory of TFDS.
      batch_size: The number of examples in a batch.
      seed: The seed of the training order and of the augmentation.

    Returns:
      Endless training batches of 1,150 digits; the 287 validation digits once, which choose the
      weights to export; and the 360 test digits once, which choose nothing.
    """
    builder = prepared(lambda: Digits(data_dir=data_dir))
    train = Source.from_tfds(
        builder, "train[:80%]", batch_size=batch_size, seed=seed, batch_map=move
    )
    val, test = builder.as_dataset(split=["train[80%:]", "test"])
    return train, val.batch(batch_size).cache(), test.batch(batch_size).cache()


def move(batch: dict[str, tf.Tensor], seed: tf.Tensor) -> dict[str, tf.Tensor]:
    """Augments a batch: rotates each image by up to 9 degrees, shifts it by up to half a pixel.

    Args:
      batch: A batch with `"image"`, float32 [n, 8, 8, 1].
      seed: The seed of this batch, int64 [2].

    Returns:
      The batch with new images.
    """
    image = batch["image"]
    draw = tf.random.stateless_uniform([3, tf.shape(image)[0]], seed, -1.0, 1.0)
    cos, sin = tf.cos(0.15 * draw[0]), tf.sin(0.15 * draw[0])
    x, y = 0.5 * draw[1], 0.5 * draw[2]
    middle = 3.5  # the transform is about the centre of the image, not its corner
    x += middle * (1 - cos + sin)
    y += middle * (1 - cos - sin)
    none = tf.zeros_like(x)
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=image,
        transforms=tf.stack([cos, -sin, x, sin, cos, y, none, none], axis=1),
        output_shape=[8, 8],
        fill_value=0.0,
        interpolation="BILINEAR",
    )
    return {**batch, "image": tf.ensure_shape(moved, image.shape)}
