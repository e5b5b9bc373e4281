"""COCO's average precision, computed by pycocotools.

    metrics = {"coco": CocoMetric(["tree"])}
    trainer.evaluate(test_set, metrics)         # {"coco/box/AP": 0.31, "coco/box/AP50": 0.62, ...}

Host code. Needs `pip install 'tfloss[detection]'`.
"""

import contextlib
import importlib.util
import io
import itertools
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np

# Indices of the reported numbers in COCOeval.stats.
_STATS = {"AP": 0, "AP50": 1, "AP75": 2, "AR": 8}


class CocoMetric:
    """Average precision of boxes and masks over a data set. A `HostMetric` for `evaluate`.

    A batch has, for n images: `"image"` [n, h, w, c]; `"boxes"` [n, g, 4], pixels (ymin, xmin,
    ymax, xmax), padded with empty boxes; `"labels"` [n, g]; and optionally `"crowd"`, bool [n, g].
    Masks also need `"polygons"` [n, g, p, 2], (y, x) in pixels, padded by repeating a corner.

    Predictions have `"boxes"` [n, d, 4], `"scores"` [n, d], which are 0 for padding, and
    `"labels"` [n, d]. Masks also need `"masks"` [n, d, m, m], probabilities within the box. They
    are interpolated bilinearly to the image, and a pixel is set from 0.5 on.
    """

    mode = "max"

    def __init__(self, class_names: Sequence[str], *, masks: bool = False):
        """Creates the metric. Runs on the host.

        Args:
          class_names: Class names, in label order.
          masks: Whether to evaluate masks as well.

        Raises:
          ImportError: pycocotools is not installed.
        """
        if importlib.util.find_spec("pycocotools") is None:
            raise ImportError(
                "CocoMetric needs pycocotools. Install it with: pip install 'tfloss[detection]'"
            )
        self.class_names = list(class_names)
        self._iou_types = {"box": "bbox", **({"mask": "segm"} if masks else {})}
        self.reset()

    def reset(self) -> None:
        """Clears all images, so that a new evaluation can start. Runs on the host."""
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._detections: list[dict[str, Any]] = []

    def update(self, batch: Mapping[str, Any], predictions: Mapping[str, Any]) -> None:
        """Adds a batch and its predictions. Runs on the host.

        Args:
          batch: NumPy arrays, as described for the class.
          predictions: NumPy arrays, as described for the class.

        Raises:
          ValueError: A label has no class name.
        """
        height, width = batch["image"].shape[1:3]
        for i in range(len(batch["image"])):
            image = {"id": len(self._images) + 1, "height": height, "width": width}
            self._images.append(image)
            self._add_annotations({k: v[i] for k, v in batch.items() if k != "image"}, image)
            self._add_detections({k: v[i] for k, v in predictions.items()}, image)

    def result(self) -> dict[str, float]:
        """Computes average precision and recall over all images so far. Runs on the host.

        Returns:
          `{"box/AP": ..., "box/AP50": ..., "box/AP75": ..., "box/AR": ...}`, and the same under
          `mask/`. AP is the mean over IoU thresholds from 0.50 to 0.95. AR is the recall with at
          most 100 detections an image. All are NaN if the data set has no objects.
        """
        with _stdout_discarded():
            return {
                f"{name}/{number}": value
                for name, iou_type in self._iou_types.items()
                for number, value in self._evaluate(iou_type).items()
            }

    def _evaluate(self, iou_type: Any) -> dict[str, float]:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        if all(annotation["iscrowd"] for annotation in self._annotations):
            return dict.fromkeys(_STATS, float("nan"))
        if not self._detections:
            return dict.fromkeys(_STATS, 0.0)
        truth: Any = COCO()
        truth.dataset = {
            "info": {},
            "images": self._images,
            "annotations": [dict(annotation) for annotation in self._annotations],
            "categories": [{"id": i, "name": name} for i, name in enumerate(self.class_names)],
        }
        truth.createIndex()
        # loadRes modifies its argument, and uses box areas where masks have a box too.
        shape = "bbox" if iou_type == "bbox" else "segmentation"
        keys = {"image_id", "category_id", "score", shape}
        detections = truth.loadRes(
            [{k: v for k, v in detection.items() if k in keys} for detection in self._detections]
        )
        evaluation = COCOeval(truth, detections, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        stats = {name: float(evaluation.stats[index]) for name, index in _STATS.items()}
        return {name: value if value >= 0 else float("nan") for name, value in stats.items()}

    def _add_annotations(self, objects: Mapping[str, Any], image: Mapping[str, Any]) -> None:
        for i, box in enumerate(objects["boxes"]):
            annotation = self._box_entry(box, objects["labels"][i], image)
            if annotation is None:
                continue
            crowd = bool(objects["crowd"][i]) if "crowd" in objects else False
            annotation |= {"id": len(self._annotations) + 1, "iscrowd": int(crowd)}
            if "mask" in self._iou_types:
                annotation["segmentation"] = _polygon_rle(objects["polygons"][i], image)
                annotation["area"] = float(_mask_api().area(annotation["segmentation"]))
            self._annotations.append(annotation)

    def _add_detections(self, objects: Mapping[str, Any], image: Mapping[str, Any]) -> None:
        for i, box in enumerate(objects["boxes"]):
            score = float(objects["scores"][i])
            detection = self._box_entry(box, objects["labels"][i], image) if score > 0 else None
            if detection is None:
                continue
            detection["score"] = score
            if "mask" in self._iou_types:
                mask = paste_mask(objects["masks"][i], box, image["height"], image["width"])
                detection["segmentation"] = _mask_api().encode(
                    np.asfortranarray(mask >= 0.5, "uint8")
                )
            self._detections.append(detection)

    def _box_entry(self, box: Any, label: Any, image: Mapping[str, Any]) -> dict[str, Any] | None:
        """Returns the COCO entry of a box, or None for padding."""
        ymin, xmin, ymax, xmax = (float(side) for side in box)
        if ymax <= ymin or xmax <= xmin:
            return None
        if not 0 <= int(label) < len(self.class_names):
            raise ValueError(
                f"Label {int(label)} has no name: CocoMetric was given the class names "
                f"{self.class_names}."
            )
        return {
            "image_id": image["id"],
            "category_id": int(label),
            "bbox": [xmin, ymin, xmax - xmin, ymax - ymin],
            "area": (xmax - xmin) * (ymax - ymin),
        }


def paste_mask(mask: np.ndarray, box: Any, height: int, width: int) -> np.ndarray:
    """Pastes the mask of a box into an image by bilinear interpolation. Runs on the host.

    The value of a mask cell belongs to the cell's centre, and a pixel is sampled at its centre.
    Beyond the outermost cell centres the border values are repeated.

    Args:
      mask: Mask of the box, float [m, m].
      box: Box, (ymin, xmin, ymax, xmax) in pixels.
      height: Image height in pixels.
      width: Image width in pixels.

    Returns:
      Mask of the image, float [height, width], 0 outside of the box.
    """
    ymin, xmin, ymax, xmax = (float(side) for side in box)

    def weights(low: float, high: float, length: int) -> np.ndarray:
        pixels = np.arange(length) + 0.5
        cells = (pixels - low) / max(high - low, 1e-6) * len(mask) - 0.5
        cells = np.clip(cells, 0, len(mask) - 1)
        bilinear = np.maximum(1 - np.abs(cells[:, None] - np.arange(len(mask))), 0)
        return bilinear * ((pixels > low) & (pixels < high))[:, None]

    return weights(ymin, ymax, height) @ mask @ weights(xmin, xmax, width).T


def _polygon_rle(polygon: np.ndarray, image: Mapping[str, Any]) -> Any:
    corners = [corner for corner, _ in itertools.groupby(np.asarray(polygon).tolist())]
    # pycocotools interprets two corners (four numbers) as a box.
    corners += corners[-1:] * max(0, 3 - len(corners))
    flat = [float(value) for y, x in corners for value in (x, y)]
    return _mask_api().frPyObjects([flat], image["height"], image["width"])[0]


def _mask_api() -> Any:
    import pycocotools.mask

    return pycocotools.mask


@contextlib.contextmanager
def _stdout_discarded() -> Generator[None]:
    """Discards stdout, where pycocotools prints its progress and its table."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
