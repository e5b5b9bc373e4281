"""Plain classification: any backbone, and a head that owns its loss and the form of its labels."""

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

import tfloss

layers = keras.layers


class Classifier(keras.Model):
    """Classifies images of garments.

    A batch is `{"image": uint8 [n, h, w, 1], "label": int [n]}`. Inference needs no label and
    returns `{"probabilities": float32 [n, classes]}`.

    Args:
      net: The backbone, any Keras layer: images float32 [n, h, w, 1] in [0, 1] to features [n, k].
      classes: The number of classes.
      representation: "sparse" for integer labels. "one_hot" for one-hot labels with mixup (Zhang
        et al. 2018, arXiv:1710.09412), which mixes images and labels in pairs. No code outside of
        this class depends on the choice.

    Raises:
      ValueError: `representation` is neither.
    """

    def __init__(self, net: keras.Layer, classes: int = 10, representation: str = "sparse"):
        super().__init__(name="classifier")
        if representation not in ("sparse", "one_hot"):
            raise ValueError(f"representation is 'sparse' or 'one_hot', got {representation!r}.")
        self.net, self.classes, self.representation = net, classes, representation
        self.head = layers.Dense(classes, dtype="float32")
        self.random = keras.random.SeedGenerator(seed=1)

    def call(self, batch: Mapping[str, tf.Tensor], training: bool = False) -> dict[str, tf.Tensor]:
        """Returns the loss in training, and predictions in inference."""
        image = tf.cast(batch["image"], tf.float32) / 255.0
        if not training:
            return {"probabilities": tf.nn.softmax(self.head(self.net(image)))}
        label = batch["label"]
        tfloss.summary.image("inputs", image, max_outputs=4)
        if self.representation == "one_hot":
            image, target = self.mixed(image, tf.one_hot(label, self.classes))
            logits = self.head(self.net(image, training=True))
            each = tf.nn.softmax_cross_entropy_with_logits(target, logits)
        else:
            logits = self.head(self.net(image, training=True))
            each = tf.nn.sparse_softmax_cross_entropy_with_logits(label, logits)
        right = tf.argmax(logits, -1, label.dtype) == label
        tfloss.summary.scalar("accuracy", tf.reduce_mean(tf.cast(right, tf.float32)))
        return {"cross_entropy": tf.reduce_mean(each)}

    def evaluation_metrics(self) -> dict[str, Any]:
        """Returns the metrics of an evaluation, by name."""
        accuracy = tfloss.metric(
            keras.metrics.SparseCategoricalAccuracy(),
            lambda batch, predictions: (batch["label"], predictions["probabilities"]),
        )
        return {"accuracy": accuracy}

    def mixed(self, image: tf.Tensor, target: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Mixes three in ten images with up to half of their neighbour in the batch (mixup).

        Args:
          image: Images [n, h, w, 1].
          target: One-hot labels [n, classes].

        Returns:
          Images and labels, mixed in the same proportions.
        """
        part = keras.random.uniform([tf.shape(image)[0]], 0.0, 0.5, seed=self.random)
        part *= tf.cast(keras.random.uniform(tf.shape(part), seed=self.random) < 0.3, tf.float32)
        other, to = part[:, tf.newaxis, tf.newaxis, tf.newaxis], part[:, tf.newaxis]
        image += other * (tf.roll(image, 1, 0) - image)
        return image, target + to * (tf.roll(target, 1, 0) - target)


def small_net(width: int = 32, dropout: float = 0.3) -> keras.Model:
    """Makes a backbone of five convolutions: [n, 28, 28, 1] -> [n, 4 * width].

    Args:
      width: The number of channels of the first block.
      dropout: The dropout rate of the features.

    Returns:
      The backbone.
    """
    blocks: list[keras.Layer] = []
    for filters in (width, 2 * width):
        blocks += [*_block(filters), *_block(filters), layers.MaxPooling2D()]
    blocks += [*_block(4 * width), layers.GlobalAveragePooling2D(), layers.Dropout(dropout)]
    return keras.Sequential(blocks, name="net")


def application(name: str, side: int, **options: Any) -> keras.Model:
    """Makes a backbone of an unchanged model of `keras.applications`.

    It resizes images to side x side x 3 and scales them from [0, 1] to the range that the model
    expects, -1 to 1 or 0 to 255. In short runs from scratch prefer models whose
    BatchNormalization has a momentum of 0.99, such as MobileNet. In MobileNetV2 and V3 it is 0.999,
    so that the moving averages that inference uses lag behind for thousands of steps.

    Args:
      name: The name of the function in `keras.applications`.
      side: The height and width of the images that the model gets, in pixels.
      **options: Further arguments of the function.

    Returns:
      The backbone: [n, h, w, 1] -> [n, k].
    """
    backbone = getattr(keras.applications, name)(
        include_top=False, input_shape=(side, side, 3), pooling="avg", **options
    )
    image = keras.Input([None, None, 1])
    x = layers.Resizing(side, side)(image)
    x = layers.Concatenate()([x, x, x])
    scales_itself = name.startswith(("MobileNetV3", "EfficientNet"))  # it expects 0 to 255
    x = layers.Rescaling(255.0)(x) if scales_itself else layers.Rescaling(2.0, -1.0)(x)
    return keras.Model(image, backbone(x), name="net")


def _block(filters: int) -> list[keras.Layer]:
    return [
        layers.Conv2D(filters, 3, padding="same", use_bias=False),
        layers.BatchNormalization(momentum=0.9),
        layers.ReLU(),
    ]
