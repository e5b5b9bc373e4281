"""Two augmented views of each Fashion-MNIST image, and the labelled images of a linear probe."""

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
      seed: The seed of the training order and of the views.

    Returns:
      Endless training batches without labels, `{"query": float32 [n, 28, 28, 1], "key": the same}`,
      of 54,000 images; and two times the batches of a linear probe, `{"image": float32
      [n, 28, 28, 1], "label": int64 [n], "tests": bool [n]}`. Both fit it to 10,000 training
      images. One tests it on the 6,000 validation images, which choose the weights to export, the
      other one on the 10,000 test images, which choose nothing.
    """
    builder = prepared(lambda: tfds.builder("fashion_mnist", data_dir=data_dir))
    train, some, val, test = builder.as_dataset(
        split=["train[:90%]", "train[:17%]", "train[90%:]", "test"]
    )
    train = train.map(lambda one: tf.cast(one["image"], tf.float32) / 255.0)
    train = train.cache().shuffle(10_000, seed=seed).repeat().batch(batch_size, drop_remainder=True)
    seeds = tf.data.Dataset.random(seed=seed).batch(2, drop_remainder=True).batch(2)
    train = tf.data.Dataset.zip(train, seeds).map(
        lambda image, seed: {"query": view(image, seed[0]), "key": view(image, seed[1])},
        num_parallel_calls=2,
        deterministic=True,
    )
    probes = (
        _probe(some, tests=False).concatenate(_probe(one, tests=True)).batch(500).cache()
        for one in (val, test)
    )
    return train.prefetch(tf.data.AUTOTUNE), *probes


def _probe(examples: tf.data.Dataset, tests: bool) -> tf.data.Dataset:
    return examples.map(
        lambda one: {
            "image": tf.cast(one["image"], tf.float32) / 255.0,
            "label": one["label"],
            "tests": tests,
        }
    )


def view(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Augments each image: random crop, aspect ratio, flip, brightness, and erasing.

    Args:
      image: Images [n, 28, 28, 1] in [0, 1].
      seed: The seed, int64 [2].

    Returns:
      Images of the same shape and range.
    """
    n = tf.shape(image)[0]
    draw = tf.unstack(tf.random.stateless_uniform([9, n], seed))
    side = 0.45 + 0.55 * draw[0]
    stretch = 0.85 + 0.3 * draw[1]
    height, width = side, tf.minimum(side * stretch, 1.0)
    top, left = draw[2] * (1 - height), draw[3] * (1 - width)
    mirrored = draw[4] < 0.5
    start = tf.where(mirrored, left + width, left)
    end = tf.where(mirrored, left, left + width)
    boxes = tf.stack([top, start, top + height, end], 1)
    seen = tf.image.crop_and_resize(image, boxes, tf.range(n), [28, 28])
    seen *= (0.6 + 0.8 * draw[5])[:, tf.newaxis, tf.newaxis, tf.newaxis]
    y, x = 28 * draw[6], 28 * draw[7]
    at = tf.range(28, dtype=tf.float32)
    size = 10.0 * draw[8][:, tf.newaxis]
    rows = tf.abs(at - y[:, tf.newaxis]) * 2 < size
    columns = tf.abs(at - x[:, tf.newaxis]) * 2 < size
    erased = rows[:, :, tf.newaxis] & columns[:, tf.newaxis]
    seen = tf.where(erased[..., tf.newaxis], 0.0, seen)
    return tf.ensure_shape(tf.clip_by_value(seen, 0.0, 1.0), [None, 28, 28, 1])
