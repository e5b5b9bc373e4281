"""Any TFDS detection data set with the features of coco/2017, in batches of static shapes."""

from collections.abc import Callable, Collection
from typing import Any

import tensorflow as tf
import tensorflow_datasets as tfds

import tfloss.datasets.digit_scenes  # importing a builder registers its name
import tfloss.datasets.tree_crowns  # noqa: F401
from tfloss.data.tfds_prepare import prepared


def batches(
    config: Any, seed: int
) -> tuple[tf.data.Dataset, tf.data.Dataset, tf.data.Dataset, list[str]]:
    """Makes the data sets.

    Images keep their aspect ratio: they are resized to fit `config.model.image_size` and padded
    with 0 below and to the right. Boxes are in pixels of the result.

    Args:
      config: The config of the run (`configs/detector.py`).
      seed: The seed of the training order and of the augmentation.

    Returns:
      Endless training batches of the first 90 % of the training images; the batches of the others
      once, which choose the weights to export; and the test batches once, which choose nothing, as
      `Detector` describes them. Then the names of the classes, in label order. If a data set has
      labels for its split "validation" only, as COCO has, these are the test batches.
    """
    builder = prepared(
        lambda: tfds.builder(config.dataset, data_dir=config.data_dir), download=False
    )
    held_out = "validation" if "validation" in builder.info.splits else "test"
    train, val, test = (
        builder.as_dataset(split=split).map(
            lambda example: _fit(example, tuple(config.model.image_size), config.max_boxes),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        for split in ("train[:90%]", "train[90%:]", held_out)
    )
    if config.cache:
        train, val, test = train.cache(), val.cache(), test.cache()
    train = train.shuffle(2_000, seed=seed).repeat()
    seeds = tf.data.Dataset.random(seed=seed).batch(2, drop_remainder=True)
    train = tf.data.Dataset.zip(train, seeds).map(
        lambda example, drawn: _augmented(example, drawn, config),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    train = train.batch(config.batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    val, test = val.batch(config.batch_size), test.batch(config.batch_size)
    return train, val, test, builder.info.features["objects"]["label"].names


def _fit(example: dict[str, Any], size: tuple[int, int], max_boxes: int) -> dict[str, Any]:
    """Resizes an example's image to (height, width), and pads its objects to `max_boxes`."""
    image = tf.cast(example["image"], tf.float32) / 255.0
    before = tf.cast(tf.shape(image)[:2], tf.float32)
    after = before * tf.reduce_min(tf.constant(size, tf.float32) / before)
    if example["image"].shape[:2] != size:
        image = tf.image.resize(image, tf.cast(tf.round(after), tf.int32), antialias=True)
        image = tf.image.pad_to_bounding_box(image, 0, 0, *size)
    objects = example["objects"]
    fitted = {
        "image": tf.ensure_shape(image, [*size, example["image"].shape[-1]]),
        "id": example["image/id"],
        "boxes": _padded(objects["bbox"] * tf.tile(after, [2]), max_boxes, 0.0),
        "labels": _padded(objects["label"], max_boxes, -1),
        "crowd": _padded(objects["is_crowd"], max_boxes, False),
    }
    if "polygon" in objects:
        fitted["polygons"] = _padded(objects["polygon"] * after, max_boxes, 0.0)
    return fitted


def _padded(values: tf.Tensor, length: int, padding: float) -> tf.Tensor:
    """Cuts or pads values to a length."""
    values = values[:length]
    missing = tf.fill([length - tf.shape(values)[0], *values.shape[1:]], padding)
    return tf.ensure_shape(
        tf.concat([values, tf.cast(missing, values.dtype)], 0), [length, *values.shape[1:]]
    )


def _augmented(example: dict[str, Any], seed: tf.Tensor, config: Any) -> dict[str, Any]:
    draw = tf.random.stateless_uniform([10], seed)
    example = mirror(example, draw[:3] < 0.5, config.mirror)
    return {**example, "image": jitter(example["image"], draw[3:], config.jitter)}


def jitter(image: tf.Tensor, draw: tf.Tensor, strength: float) -> tf.Tensor:
    """Varies colours, contrast and sharpness, as another camera and light would.

    Args:
      image: An image [h, w, c] in [0, 1].
      draw: Seven random numbers in [0, 1).
      strength: The strength of the changes; 0 changes nothing, 1 is strong.

    Returns:
      An image of the same shape and range.
    """
    if not strength:
        return image
    channels = image.shape[-1]
    gain = tf.exp(strength * (0.6 * (draw[0] - 0.5) + 0.3 * (draw[1 : 1 + channels] - 0.5)))
    image = image * gain + strength * 0.3 * (draw[4] - 0.5)
    row = tf.constant([1.0, 4.0, 6.0, 4.0, 1.0]) / 16.0
    kernel = tf.tile((row[:, tf.newaxis] * row)[:, :, tf.newaxis, tf.newaxis], [1, 1, channels, 1])
    wide = tf.pad(image[tf.newaxis], [[0, 0], [2, 2], [2, 2], [0, 0]], "SYMMETRIC")
    soft = tf.nn.depthwise_conv2d(wide, kernel, [1, 1, 1, 1], "VALID")[0]
    # The sharpness varies between doubled and fully smoothed.
    image += strength * (2.0 * draw[5] - 1.0) * (soft - image)
    return tf.clip_by_value(image, 0.0, 1.0)


def mirror(example: dict[str, Any], coins: tf.Tensor, allowed: Collection[str]) -> dict[str, Any]:
    """Flips an example along each of the allowed axes whose coin is True.

    Args:
      example: An example with `"image"` and `"boxes"`.
      coins: Three booleans, for "columns", "rows" and "diagonal".
      allowed: Some of these names. "columns" flips left and right, "rows" flips top and bottom,
        "diagonal" transposes square images. All three together give the eight symmetries of a
        square.

    Returns:
      The flipped example.
    """
    for coin, axis in zip(tf.unstack(coins, 3), ("columns", "rows", "diagonal"), strict=True):
        if axis in allowed:
            flipped = _flipped(example, axis)
            example = {k: tf.where(coin, v, example[k]) for k, v in flipped.items()}
    return example


def _flipped(example: dict[str, Any], axis: str) -> dict[str, Any]:
    """Flips pixels and corners (y, x) in the same way, and sorts the two corners of a box again."""
    image = example["image"]
    height, width = image.shape[:2]
    flips: dict[str, tuple[Any, Callable[[Any], Any]]] = {
        "columns": (image[:, ::-1], lambda corner: [0.0, width] + corner * [1.0, -1.0]),
        "rows": (image[::-1], lambda corner: [height, 0.0] + corner * [-1.0, 1.0]),
        "diagonal": (tf.transpose(image, [1, 0, 2]), lambda corner: corner[..., ::-1]),
    }
    pixels, flip = flips[axis]
    corners = flip(tf.reshape(example["boxes"], [-1, 2, 2]))
    boxes = tf.concat([tf.reduce_min(corners, 1), tf.reduce_max(corners, 1)], 1)
    real = tf.reduce_any(example["boxes"] > 0, -1, keepdims=True)
    flipped = {"image": pixels, "boxes": tf.where(real, boxes, 0.0)}  # padding stays 0
    if "polygons" in example:
        flipped["polygons"] = flip(example["polygons"])
    return {**example, **flipped}
