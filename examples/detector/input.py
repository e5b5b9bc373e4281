"""Any TFDS detection data set with the features of coco/2017, as batches of static shapes."""

import tensorflow as tf
import tensorflow_datasets as tfds

import tfloss.datasets.digit_scenes  # importing a builder registers its name
import tfloss.datasets.tree_crowns  # noqa: F401
from tfloss.data.tfds_prepare import prepared


def batches(config, seed: int) -> tuple[tf.data.Dataset, tf.data.Dataset, list[str]]:
    """Endless training batches, test batches once, and the names of the classes.

    Images keep their aspect ratio: they are resized to fit `config.model.image_size` and padded
    with 0 below and to the right; boxes are in pixels of the result. Order and augmentation depend
    on the seed alone. `Detector` says what a batch holds.
    """
    tfds.disable_progress_bar()
    builder = prepared(
        lambda: tfds.builder(config.dataset, data_dir=config.data_dir), download=False
    )
    held_out = "validation" if "validation" in builder.info.splits else "test"
    train, test = (
        builder.as_dataset(split=split).map(
            lambda example: _fit(example, tuple(config.model.image_size), config.max_boxes),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        for split in ("train", held_out)
    )
    if config.cache:
        train, test = train.cache(), test.cache()
    train = train.shuffle(2_000, seed=seed).repeat()
    seeds = tf.data.Dataset.random(seed=seed).batch(2, drop_remainder=True)
    train = tf.data.Dataset.zip(train, seeds).map(
        lambda example, drawn: _augmented(example, drawn, config),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    train = train.batch(config.batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    return train, test.batch(config.batch_size), builder.info.features["objects"]["label"].names


def _fit(example, size: tuple[int, int], places: int):
    """One example of `Detector`'s batch: resized, objects in `places` places."""
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
        "boxes": _places(objects["bbox"] * tf.tile(after, [2]), places, 0.0),
        "labels": _places(objects["label"], places, -1),
        "crowd": _places(objects["is_crowd"], places, False),
    }
    if "polygon" in objects:
        fitted["polygons"] = _places(objects["polygon"] * after, places, 0.0)
    return fitted


def _places(values, places: int, padding):
    """The first `places` values, padded to as many."""
    values = values[:places]
    missing = tf.fill([places - tf.shape(values)[0], *values.shape[1:]], padding)
    return tf.ensure_shape(
        tf.concat([values, tf.cast(missing, values.dtype)], 0), [places, *values.shape[1:]]
    )


def _augmented(example, seed, config):
    draw = tf.random.stateless_uniform([10], seed)
    example = mirror(example, draw[:3] < 0.5, config.mirror)
    return {**example, "image": jitter(example["image"], draw[3:], config.jitter)}


def jitter(image, draw, strength: float):
    """The image as another camera and light would have it: other colours, contrast, sharpness.

    draw: [7] numbers in [0, 1). strength: 0 changes nothing, 1 is a lot.
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
    # From twice as sharp to fully smoothed.
    image += strength * (2.0 * draw[5] - 1.0) * (soft - image)
    return tf.clip_by_value(image, 0.0, 1.0)


def mirror(example, coins, allowed):
    """The example, mirrored in each of the allowed ways whose coin shows True.

    "columns" changes left and right, "rows" above and below, "diagonal" rows and columns, for
    square images. With all three, an image is seen in all of a square's eight positions.
    """
    for coin, way in zip(tf.unstack(coins, 3), ("columns", "rows", "diagonal"), strict=True):
        if way in allowed:
            turned = _mirrored(example, way)
            example = {k: tf.where(coin, v, example[k]) for k, v in turned.items()}
    return example


def _mirrored(example, way: str):
    """Corners (y, x) are mirrored as pixels are; a box is its two corners, put in order again."""
    image = example["image"]
    height, width = image.shape[:2]
    picture, place = {
        "columns": (image[:, ::-1], lambda corner: [0.0, width] + corner * [1.0, -1.0]),
        "rows": (image[::-1], lambda corner: [height, 0.0] + corner * [-1.0, 1.0]),
        "diagonal": (tf.transpose(image, [1, 0, 2]), lambda corner: corner[..., ::-1]),
    }[way]
    corners = place(tf.reshape(example["boxes"], [-1, 2, 2]))
    boxes = tf.concat([tf.reduce_min(corners, 1), tf.reduce_max(corners, 1)], 1)
    there = tf.reduce_any(example["boxes"] > 0, -1, keepdims=True)
    turned = {"image": picture, "boxes": tf.where(there, boxes, 0.0)}  # padding stays 0
    if "polygons" in example:
        turned["polygons"] = place(example["polygons"])
    return {**example, **turned}
