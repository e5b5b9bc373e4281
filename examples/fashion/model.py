"""Plain classification: a net, and a head that owns its loss and its form of the labels."""

import keras
import tensorflow as tf

import tfloss

layers = keras.layers


class Classifier(keras.Model):
    """Tells which garment a picture shows.

    A batch is `{"image": uint8 [n, h, w, 1], "label": int [n]}`. In inference the model takes
    the image and returns `{"probabilities": float32 [n, classes]}`.

    Args:
      net: pictures in [0, 1] to features; any Keras model or layer.
      classes: how many there are.
      representation: "sparse" labels, or "one_hot": pictures are mixed in pairs, and so are
        their labels (mixup, Zhang et al. 2018, arXiv:1710.09412), which integers can't be.
        Nothing outside of this class depends on it.
    """

    def __init__(self, net, classes: int = 10, representation: str = "sparse"):
        super().__init__(name="classifier")
        if representation not in ("sparse", "one_hot"):
            raise ValueError(f"representation is 'sparse' or 'one_hot', got {representation!r}.")
        self.net, self.classes, self.representation = net, classes, representation
        self.head = layers.Dense(classes, dtype="float32")
        self.random = keras.random.SeedGenerator(seed=1)

    def call(self, batch, training=False):
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

    def mixed(self, image, target):
        """Each picture with up to half of its neighbour's in the batch, and labels alike."""
        part = keras.random.uniform([tf.shape(image)[0]], 0.0, 0.5, seed=self.random)
        part *= tf.cast(keras.random.uniform(tf.shape(part), seed=self.random) < 0.3, tf.float32)
        other, to = part[:, tf.newaxis, tf.newaxis, tf.newaxis], part[:, tf.newaxis]
        image += other * (tf.roll(image, 1, 0) - image)
        return image, target + to * (tf.roll(target, 1, 0) - target)


def small_net(width: int = 32, dropout: float = 0.3) -> keras.Model:
    """Pictures [n, 28, 28, 1] -> features [n, 4 * width]: four convolutions."""
    blocks = []
    for filters in (width, 2 * width):
        blocks += [*_block(filters), *_block(filters), layers.MaxPooling2D()]
    blocks += [*_block(4 * width), layers.GlobalAveragePooling2D(), layers.Dropout(dropout)]
    return keras.Sequential(blocks, name="net")


def application(name: str, side: int, **options) -> keras.Model:
    """A model of `keras.applications`, unchanged, behind a resize to side x side x 3.

    Pictures come in [0, 1] and the model gets -1 to 1 or 0 to 255, as it is made for. In a short
    run from scratch mind the momentum of its BatchNormalizations: MobileNet's is 0.99, but V2's and
    V3's 0.999, so that for thousands of steps the averages used in inference lag behind.
    """
    backbone = getattr(keras.applications, name)(
        include_top=False, input_shape=(side, side, 3), pooling="avg", **options
    )
    image = keras.Input([None, None, 1])
    x = layers.Resizing(side, side)(image)
    x = layers.Concatenate()([x, x, x])
    scales_itself = name.startswith(("MobileNetV3", "EfficientNet"))  # from 0 to 255
    x = layers.Rescaling(255.0)(x) if scales_itself else layers.Rescaling(2.0, -1.0)(x)
    return keras.Model(image, backbone(x), name="net")


def _block(filters: int) -> list[keras.Layer]:
    return [
        layers.Conv2D(filters, 3, padding="same", use_bias=False),
        layers.BatchNormalization(momentum=0.9),
        layers.ReLU(),
    ]
