"""Mask R-CNN on a feature pyramid, small enough for a CPU.

    image ─▶ Backbone ─▶ features of 3 levels ─▶ RPN ─▶ objectness, offsets of all anchors
                              │                              │
                              │          training:           ├─▶ anchors matched, sampled ─▶ rpn/*
                              ▼                              ▼
                          RoIAlign ◀─── boxes ◀───────── proposals
                              │          training: + true boxes, matched, sampled ─▶ box/*, mask/*
                              └─────────▶ heads          inference: ─▶ detections, their masks

He et al. 2017 (arXiv:1703.06870); Ren et al. 2015 (arXiv:1506.01497); Lin et al. 2017
(arXiv:1612.03144). Training computes no detections, and inference neither matches nor samples.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

import tfloss
from tfloss.detection import drawing, nms
from tfloss.detection.anchors import generate_anchors
from tfloss.detection.boxes import BOX_HEAD_WEIGHTS, clip, decode, encode
from tfloss.detection.masks import rasterize
from tfloss.detection.matching import match
from tfloss.detection.roi_align import roi_align
from tfloss.detection.sampling import Sample, noise, sample

layers = keras.layers
STRIDES = (4, 8, 16)
Batch = Mapping[str, tf.Tensor]


class Detector(keras.Model):
    """Detects objects: boxes, classes and, optionally, masks.

    A batch is `{"image": float32 [n, h, w, c] in [0, 1]}`, and in training also `"id"`: int64
    [n]; `"boxes"`: float32 [n, g, 4], pixels (ymin, xmin, ymax, xmax), padded with 0; `"labels"`:
    [n, g] in [0, classes); `"crowd"`: bool [n, g]; with masks `"polygons"`: [n, g, p, 2], (y, x).

    Inference returns `{"boxes": [n, d, 4], "scores": [n, d], "labels": int32 [n, d]}` with
    d = `detections`, padded with score 0; and with masks `"masks"`: [n, d, 14, 14], the probability
    of each pixel of the box.

    Args:
      classes: The number of classes.
      image_size: The (height, width) of images in pixels.
      anchor_sizes: For each of the 3 levels, square roots of the anchors' areas in pixels.
      width: The number of channels of the first stage, a multiple of 16.
      masks: Whether there is a mask head.
      hard_examples: Whether to sample the regions with the largest loss, not random ones.
      rpn_samples: The number of anchors per image that the RPN's losses use.
      roi_samples: The number of regions per image that the heads' losses use.
      proposals: The number of proposals per image.
      detections: The largest number of detections per image.
    """

    def __init__(
        self,
        classes: int,
        image_size: tuple[int, int],
        anchor_sizes: Sequence[Sequence[float]],
        width: int = 32,
        masks: bool = True,
        hard_examples: bool = False,
        rpn_samples: int = 64,
        roi_samples: int = 32,
        proposals: int = 64,
        detections: int = 20,
    ):
        super().__init__(name="detector")
        self.classes, self.image_size = classes, tuple(image_size)
        self.hard_examples = hard_examples
        self.rpn_samples, self.roi_samples = rpn_samples, roi_samples
        self.proposals, self.detections = proposals, detections
        self.anchors = generate_anchors(self.image_size, STRIDES, [tuple(s) for s in anchor_sizes])
        self.scale = 2.0 * max(
            anchor_sizes[0]
        )  # the size of boxes that RoIAlign takes from the second level
        self.backbone = Backbone(width)
        self.rpn = RegionProposals(2 * width, len(anchor_sizes[0]) * 3)
        self.box_head = BoxHead(4 * width, classes)
        self.mask_head = MaskHead(2 * width, classes) if masks else None

    def call(self, batch: Batch, training: bool = False) -> dict[str, Any]:
        """Returns the losses in training, and detections in inference."""
        features = self.backbone(batch["image"])
        objectness, offsets = self.rpn(features)
        boxes, scores = self.propose(objectness, offsets)
        if training:
            _show_proposals(batch["image"], boxes, scores)
            with tfloss.summary.scope("rpn"):
                losses = {"rpn": self.rpn_losses(batch, objectness, offsets)}
            return {**losses, **self.roi_losses(batch, features, boxes)}
        return self.detect(features, boxes)

    def rpn_losses(
        self, batch: Batch, objectness: tf.Tensor, offsets: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Computes the losses of objectness and offsets on a sample of the anchors."""
        found = match(
            self.anchors,
            batch["boxes"],
            high_threshold=0.6,
            low_threshold=0.3,
            allow_low_quality_matches=True,
            crowd=batch["crowd"],
        )
        priority = noise(batch["id"], 2 * tfloss.current_step(), len(self.anchors))
        some = sample(
            found.positive,
            found.negative,
            num_samples=self.rpn_samples,
            max_positives=self.rpn_samples // 2,
            priority=priority,
        )
        _show_sample(batch["image"], self.anchors, some)
        logits = tf.gather(objectness, some.index, batch_dims=1)
        guessed = tf.gather(offsets, some.index, batch_dims=1)
        truth = tf.gather(found.index, some.index, batch_dims=1)
        truth = tf.gather(batch["boxes"], truth, batch_dims=1)
        target = encode(truth, tf.gather(self.anchors, some.index))
        return {
            "objectness": tfloss.global_mean(
                tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(some.positive, tf.float32), logits),
                some.valid,
            ),
            "box": tfloss.global_mean(smooth_l1(target - guessed, 1 / 9), some.positive),
        }

    def propose(self, objectness: tf.Tensor, offsets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the proposals' boxes and scores. No gradient flows through them."""
        boxes = clip(decode(tf.stop_gradient(offsets), self.anchors), *self.image_size)
        sides = boxes[..., 2:] - boxes[..., :2]
        scores = tf.where(tf.reduce_min(sides, -1) >= 1.0, objectness, -float("inf"))
        return nms.propose(
            boxes,
            tf.stop_gradient(scores),
            pre_nms_top_k=8 * self.proposals,
            post_nms_top_k=self.proposals,
            iou_threshold=0.7,
        )

    def roi_losses(
        self, batch: Batch, features: list[tf.Tensor], proposals: tf.Tensor
    ) -> dict[str, dict[str, tf.Tensor]]:
        """Computes the heads' losses on a sample of the proposals and the true boxes."""
        crowd = batch["crowd"][..., tf.newaxis]
        regions = tf.concat([proposals, tf.where(crowd, 0.0, batch["boxes"])], 1)
        found = match(
            regions, batch["boxes"], high_threshold=0.5, low_threshold=0.5, crowd=batch["crowd"]
        )
        labels = tf.cast(tf.gather(batch["labels"], found.index, batch_dims=1), tf.int32)
        labels = tf.where(found.positive, labels, self.classes)  # the last class is the background
        if self.hard_examples:
            priority = self.difficulty(features, regions, labels)
        else:
            priority = noise(batch["id"], 2 * tfloss.current_step() + 1, regions.shape[1])
        foreground = self.roi_samples // 4
        some = sample(
            found.positive,
            found.negative,
            num_samples=self.roi_samples,
            max_positives=foreground,
            priority=priority,
        )
        regions, truth, labels = (
            tf.gather(each, some.index, batch_dims=1) for each in (regions, found.index, labels)
        )

        logits, guessed = self.box_head(self.align(features, regions, 7))
        target = encode(tf.gather(batch["boxes"], truth, batch_dims=1), regions, BOX_HEAD_WEIGHTS)
        losses = {
            "box": {
                "class": tfloss.global_mean(
                    tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits), some.valid
                ),
                "box": tfloss.global_mean(smooth_l1(target - guessed, 1.0), some.positive),
            }
        }
        right = tf.cast(tf.argmax(logits, -1, tf.int32) == labels, tf.float32)
        tfloss.summary.scalar("box/accuracy", tfloss.global_mean(right, some.positive))
        if self.mask_head:
            # Positives come first in a sample, so the first regions include all of them.
            regions, truth, labels, positive = (
                each[:, :foreground] for each in (regions, truth, labels, some.positive)
            )
            logits = self.mask_head(self.align(features, regions, 7), labels)
            polygons = tf.gather(batch["polygons"], truth, batch_dims=1)
            target = rasterize(polygons, regions, logits.shape[-1])
            each = tf.nn.sigmoid_cross_entropy_with_logits(target, logits)
            losses["mask"] = {
                "mask": tfloss.global_mean(each, positive[..., tf.newaxis, tf.newaxis])
            }
        return losses

    def difficulty(
        self, features: list[tf.Tensor], regions: tf.Tensor, labels: tf.Tensor
    ) -> tf.Tensor:
        """Computes sampling priorities [n, r] in [0, 1) for online hard example mining.

        Regions with a larger classification loss come first (Shrivastava et al. 2016,
        arXiv:1604.03540).
        """
        logits, _ = self.box_head(self.align(features, regions, 7))
        wrong = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        return tf.stop_gradient(1.0 - tf.exp(-tf.minimum(wrong, 15.0)))

    def detect(self, features: list[tf.Tensor], regions: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the detections. Masks are computed for these only."""
        logits, offsets = self.box_head(self.align(features, regions, 7))
        there = tf.cast(tf.reduce_any(regions > 0, -1, keepdims=True), tf.float32)
        scores = tf.nn.softmax(logits)[..., :-1] * there
        boxes = clip(decode(offsets, regions, BOX_HEAD_WEIGHTS), *self.image_size)
        boxes, scores, labels = nms.detect(
            boxes,
            scores,
            max_detections=self.detections,
            score_threshold=0.05,
            iou_threshold=0.5,
        )
        found = {"boxes": boxes, "scores": scores, "labels": labels}
        if self.mask_head:
            logits = self.mask_head(self.align(features, boxes, 7), labels)
            found["masks"] = tf.sigmoid(logits)
        return found

    def align(self, features: list[tf.Tensor], boxes: tf.Tensor, size: int) -> tf.Tensor:
        """Crops the features of boxes with RoIAlign: [n, r, size, size, channels]."""
        return roi_align(features, STRIDES, boxes, size, canonical_box_size=self.scale)


class Backbone(layers.Layer):
    """A residual net of 3 stages with a feature pyramid: 3 levels of 2 * width channels."""

    def __init__(self, width: int):
        super().__init__()
        self.stem = _conv(width // 2, stride=2)
        self.stages = [Stage(width * 2**i) for i in range(len(STRIDES))]
        self.lateral = [layers.Conv2D(2 * width, 1) for _ in STRIDES]
        self.smooth = [layers.Conv2D(2 * width, 3, padding="same") for _ in STRIDES]
        self.double = layers.UpSampling2D()

    def call(self, image: tf.Tensor) -> list[tf.Tensor]:
        """Returns the levels [n, h / stride, w / stride, c], highest resolution first."""
        found, x = [], self.stem(2.0 * image - 1.0)
        for stage, lateral in zip(self.stages, self.lateral, strict=True):
            x = stage(x)
            found.append(lateral(x))
        for level in reversed(range(len(found) - 1)):
            above = self.double(found[level + 1])
            found[level] += above[:, : found[level].shape[1], : found[level].shape[2]]
        return [smooth(each) for smooth, each in zip(self.smooth, found, strict=True)]


class Stage(layers.Layer):
    """A convolution that halves the resolution, then a residual block."""

    def __init__(self, filters: int):
        super().__init__()
        self.down, self.first, self.second = _conv(filters, 2), _conv(filters), _conv(filters)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Maps [n, h, w, c] to [n, h / 2, w / 2, filters]."""
        x = self.down(x)
        return x + self.second(self.first(x))


class RegionProposals(layers.Layer):
    """The head of the region proposal network (RPN), shared by all levels."""

    def __init__(self, filters: int, anchors: int):
        super().__init__()
        self.conv = layers.Conv2D(filters, 3, padding="same", activation="relu")
        self.objectness = layers.Conv2D(anchors, 1)
        self.offsets = layers.Conv2D(4 * anchors, 1, kernel_initializer=_small(0.01))

    def call(self, features: list[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns objectness logits [n, A] and offsets [n, A, 4] of all anchors."""
        logits, offsets = [], []
        for level in features:
            x = self.conv(level)
            cells = level.shape[1] * level.shape[2]
            logits.append(tf.reshape(self.objectness(x), [-1, cells * self.objectness.filters]))
            offsets.append(tf.reshape(self.offsets(x), [-1, cells * self.objectness.filters, 4]))
        return tf.concat(logits, 1), tf.concat(offsets, 1)


class BoxHead(layers.Layer):
    """The head that classifies regions and refines their boxes."""

    def __init__(self, units: int, classes: int):
        super().__init__()
        self.hidden = [layers.Dense(units, activation="relu") for _ in range(2)]
        self.logits = layers.Dense(classes + 1, kernel_initializer=_small(0.01))
        self.offsets = layers.Dense(4, kernel_initializer=_small(0.001))

    def call(self, regions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Maps [n, r, 7, 7, c] to logits [n, r, classes + 1] and offsets [n, r, 4]."""
        n, height, width, channels = regions.shape[1:]
        x = tf.reshape(regions, [-1, n, height * width * channels])
        for hidden in self.hidden:
            x = hidden(x)
        return self.logits(x), self.offsets(x)


class MaskHead(layers.Layer):
    """The head that predicts a mask for each class."""

    def __init__(self, filters: int, classes: int):
        super().__init__()
        self.convs = [
            layers.Conv2D(filters, 3, padding="same", activation="relu") for _ in range(2)
        ]
        self.up = layers.Conv2DTranspose(filters, 2, strides=2, activation="relu")
        self.logits = layers.Conv2D(classes, 1)

    def call(self, regions: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Maps regions [n, r, 7, 7, c] to the mask logits [n, r, 14, 14] of their labels [n, r]."""
        n, size = regions.shape[1], regions.shape[2]
        x = tf.reshape(regions, [-1, size, size, regions.shape[-1]])
        for conv in self.convs:
            x = conv(x)
        logits = tf.reshape(
            self.logits(self.up(x)), [-1, n, 2 * size, 2 * size, self.logits.filters]
        )
        chosen = tf.one_hot(labels, self.logits.filters)  # all 0 for the background
        return tf.einsum("nrhwc,nrc->nrhw", logits, chosen)


def smooth_l1(error: tf.Tensor, beta: float) -> tf.Tensor:
    """Sums the smooth L1 loss over the last axis (Girshick 2015, arXiv:1504.08083, eq. 3).

    Args:
      error: Errors [..., 4].
      beta: The error below which the loss is quadratic; above, it is linear.

    Returns:
      Losses [...].
    """
    size = tf.abs(error)
    each = tf.where(size < beta, 0.5 * error**2 / beta, size - 0.5 * beta)
    return tf.reduce_sum(each, -1)


def _conv(filters: int, stride: int = 1) -> keras.Sequential:
    return keras.Sequential(
        [
            layers.Conv2D(filters, 3, stride, padding="same", use_bias=False),
            layers.GroupNormalization(8),
            layers.ReLU(),
        ]
    )


def _small(deviation: float) -> keras.initializers.Initializer:
    return keras.initializers.RandomNormal(stddev=deviation)


def _show_proposals(image: tf.Tensor, boxes: tf.Tensor, scores: tf.Tensor) -> None:
    """Records the ten best proposals of four images, with their objectness."""
    tfloss.summary.draw(
        "proposals", drawing.draw_boxes, image[:4], boxes[:4, :10], tf.sigmoid(scores[:4, :10])
    )


def _show_sample(image: tf.Tensor, all_anchors: Any, some: Sample) -> None:
    """Records the sampled anchors of four images, in the colours of positive and negative."""
    boxes = tf.where(some.valid[:4, :, tf.newaxis], tf.gather(all_anchors, some.index[:4]), 0.0)
    tfloss.summary.draw("sampled", _draw_sample, image[:4], boxes, some.positive[:4])


def _draw_sample(image: Any, boxes: Any, positive: Any) -> Any:
    return drawing.draw_boxes(image, boxes, labels=positive)
