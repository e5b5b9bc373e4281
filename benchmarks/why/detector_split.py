"""The detector of examples/detector in the form that `keras.fit` needs: model, losses, targets.

It is as short as this form allows: it inherits the example's layers, and only what the separation
changes is here. A loss function of `compile` gets one output and one target. The other values that
a loss needs from the forward pass (which anchors were sampled, their targets, which of them count)
are therefore packed into the model's outputs, and the targets that `fit` needs are empty.
"""

from collections.abc import Callable

import tensorflow as tf
from _examples import load

from tfloss.detection.boxes import BOX_HEAD_WEIGHTS, encode
from tfloss.detection.masks import rasterize
from tfloss.detection.matching import match
from tfloss.detection.sampling import noise, sample

example = load("detector/model.py")


class SplitDetector(example.Detector):
    """A detector that returns the inputs of each loss in training, and detections in inference."""

    def call(self, batch, training=False):
        """Returns the inputs of each loss in training, and detections in inference."""
        features = self.backbone(batch["image"])
        objectness, offsets = self.rpn(features)
        boxes, _ = self.propose(objectness, offsets)
        if not training:
            return self.detect(features, boxes)
        rpn = self.rpn_outputs(batch, objectness, offsets)
        return {**rpn, **self.roi_outputs(batch, features, boxes)}

    def rpn_outputs(self, batch, objectness, offsets):
        """Returns the inputs of the RPN's losses."""
        found = match(
            self.anchors,
            batch["boxes"],
            high_threshold=0.6,
            low_threshold=0.3,
            allow_low_quality_matches=True,
            crowd=batch["crowd"],
        )
        step = tf.cast(self.optimizer.iterations, tf.int64)
        priority = noise(batch["id"], 2 * step, len(self.anchors))
        some = sample(
            found.positive,
            found.negative,
            num_samples=self.rpn_samples,
            max_positives=self.rpn_samples // 2,
            priority=priority,
        )
        logits = tf.gather(objectness, some.index, batch_dims=1)
        guessed = tf.gather(offsets, some.index, batch_dims=1)
        truth = tf.gather(found.index, some.index, batch_dims=1)
        truth = tf.gather(batch["boxes"], truth, batch_dims=1)
        target = encode(truth, tf.gather(self.anchors, some.index))
        return {
            "rpn_objectness": _pack(logits, some.positive, some.valid),
            "rpn_box": _pack(guessed, target, some.positive),
        }

    def roi_outputs(self, batch, features, proposals):
        """Returns the inputs of the heads' losses."""
        crowd = batch["crowd"][..., tf.newaxis]
        regions = tf.concat([proposals, tf.where(crowd, 0.0, batch["boxes"])], 1)
        found = match(
            regions, batch["boxes"], high_threshold=0.5, low_threshold=0.5, crowd=batch["crowd"]
        )
        labels = tf.cast(tf.gather(batch["labels"], found.index, batch_dims=1), tf.int32)
        labels = tf.where(found.positive, labels, self.classes)
        if self.hard_examples:
            priority = self.difficulty(features, regions, labels)
        else:
            step = tf.cast(self.optimizer.iterations, tf.int64)
            priority = noise(batch["id"], 2 * step + 1, regions.shape[1])
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
        outputs = {
            "box_class": _pack(logits, labels, some.valid),
            "box_box": _pack(guessed, target, some.positive),
        }
        if self.mask_head:
            regions, truth, labels, positive = (
                each[:, :foreground] for each in (regions, truth, labels, some.positive)
            )
            logits = self.mask_head(self.align(features, regions, 7), labels)
            polygons = tf.gather(batch["polygons"], truth, batch_dims=1)
            target = rasterize(polygons, regions, logits.shape[-1])
            counts = tf.broadcast_to(positive[..., tf.newaxis, tf.newaxis], tf.shape(logits))
            outputs["mask_mask"] = tf.stack([logits, target, tf.cast(counts, tf.float32)], -1)
        return outputs


def losses(masks: bool) -> dict[str, Callable]:
    """Returns the argument of `compile(loss=)`."""
    found = {
        "rpn_objectness": objectness_loss,
        "rpn_box": rpn_box_loss,
        "box_class": class_loss,
        "box_box": roi_box_loss,
    }
    if masks:
        found["mask_mask"] = mask_loss
    return found


def targets(batch, masks: bool):
    """Makes (x, y) for `fit`. The forward pass samples by the truth in x; y is unused."""
    empty = tf.zeros([tf.shape(batch["image"])[0], 1])
    names = ["rpn_objectness", "rpn_box", "box_class", "box_box"]
    if masks:
        names.append("mask_mask")
    return batch, {name: empty for name in names}


def objectness_loss(_, output):
    """Computes the RPN's classification loss."""
    logits, positive, valid = tf.unstack(output, axis=-1)
    return _mean(tf.nn.sigmoid_cross_entropy_with_logits(positive, logits), valid)


def rpn_box_loss(_, output):
    """Computes the RPN's box loss."""
    guessed, target, positive = output[..., :4], output[..., 4:8], output[..., 8]
    return _mean(example.smooth_l1(target - guessed, 1 / 9), positive)


def class_loss(_, output):
    """Computes the classification loss of regions."""
    logits, labels, valid = output[..., :-2], tf.cast(output[..., -2], tf.int32), output[..., -1]
    return _mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits), valid)


def roi_box_loss(_, output):
    """Computes the box loss of regions."""
    guessed, target, positive = output[..., :4], output[..., 4:8], output[..., 8]
    return _mean(example.smooth_l1(target - guessed, 1.0), positive)


def mask_loss(_, output):
    """Computes the mask loss."""
    logits, target, positive = tf.unstack(output, axis=-1)
    return _mean(tf.nn.sigmoid_cross_entropy_with_logits(target, logits), positive)


def _pack(*parts):
    """Concatenates tensors [n, s] and [n, s, c] to one output."""
    parts = [tf.cast(part, tf.float32) for part in parts]
    return tf.concat([part if part.shape.rank == 3 else part[..., tf.newaxis] for part in parts], 2)


def _mean(values, weights):
    """The weighted mean over the replica's batch; a loss function has no access to others."""
    return tf.math.divide_no_nan(tf.reduce_sum(values * weights), tf.reduce_sum(weights))
