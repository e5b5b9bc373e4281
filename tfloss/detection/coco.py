"""COCO's average precision, by pycocotools.

    metrics = {"coco": CocoMetric(["tree"])}
    trainer.evaluate(test_set, metrics)         # {"coco/box/AP": 0.31, "coco/box/AP50": 0.62, ...}

Host code. Needs `pip install 'tfloss[detection]'`.
"""

import contextlib
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

# Places of these numbers in COCOeval.stats.
_SHOWN = {"AP": 0, "AP50": 1, "AP75": 2, "AR": 8}


class CocoMetric:
    """Average precision of boxes and masks over a data set. A metric for `evaluate`.

    A batch has, for n images: `"image"` [n, h, w, c]; `"boxes"` [n, g, 4], pixels (ymin, xmin,
    ymax, xmax), padded with empty ones; `"labels"` [n, g]; and may have `"crowd"`: bool [n, g].
    For masks also `"polygons"` [n, g, p, 2], (y, x) in pixels, padded by repeating a corner.

    Predictions have `"boxes"` [n, d, 4], `"scores"` [n, d], 0 for padding, and `"labels"` [n, d];
    for masks also `"masks"` [n, d, m, m], probabilities within the box. They are drawn into the
    image bilinearly, and are 1 from 0.5 on.

    Args:
      names: of the classes, in order of their labels.
      masks: evaluate masks, too.

    Raises:
      ImportError: pycocotools is not installed.
    """

    def __init__(self, names: Sequence[str], *, masks: bool = False):
        try:
            import pycocotools.cocoeval  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "CocoMetric needs pycocotools. Install it with: pip install 'tfloss[detection]'"
            ) from error
        self.names = list(names)
        self.kinds = {"box": "bbox", **({"mask": "segm"} if masks else {})}
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self._images: list[dict[str, Any]] = []
        self._truth: list[dict[str, Any]] = []
        self._found: list[dict[str, Any]] = []

    def update(self, batch: Mapping[str, Any], predictions: Mapping[str, Any]) -> None:
        """Takes a batch and its predictions, numpy arrays.

        Raises:
          ValueError: a label that has no name.
        """
        height, width = batch["image"].shape[1:3]
        for i in range(len(batch["image"])):
            image = {"id": len(self._images) + 1, "height": height, "width": width}
            self._images.append(image)
            self._add_truth({k: v[i] for k, v in batch.items() if k != "image"}, image)
            self._add_found({k: v[i] for k, v in predictions.items()}, image)

    def result(self) -> dict[str, float]:
        """`{"box/AP": ..., "box/AP50": ..., "box/AP75": ..., "box/AR": ...}`, and `mask/...`.

        AP is the mean over IoU 0.50 to 0.95, AR the recall with at most 100 detections an image.
        NaN if there is no object at all.
        """
        with _quiet():
            return {
                f"{name}/{number}": value
                for name, kind in self.kinds.items()
                for number, value in self._evaluate(kind).items()
            }

    def _evaluate(self, kind: Any) -> dict[str, float]:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        if not any(not one["iscrowd"] for one in self._truth):
            return dict.fromkeys(_SHOWN, float("nan"))
        if not self._found:
            return dict.fromkeys(_SHOWN, 0.0)
        truth: Any = COCO()
        truth.dataset = {
            "info": {},
            "images": self._images,
            "annotations": [dict(one) for one in self._truth],
            "categories": [{"id": i, "name": name} for i, name in enumerate(self.names)],
        }
        truth.createIndex()
        # loadRes changes what it is given, and takes boxes for areas where there are masks.
        keys = {"image_id", "category_id", "score", "bbox" if kind == "bbox" else "segmentation"}
        found = truth.loadRes([{k: v for k, v in one.items() if k in keys} for one in self._found])
        evaluation = COCOeval(truth, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        stats = {name: float(evaluation.stats[place]) for name, place in _SHOWN.items()}
        return {name: value if value >= 0 else float("nan") for name, value in stats.items()}

    def _add_truth(self, objects: Mapping[str, Any], image: Mapping[str, Any]) -> None:
        for number, box in enumerate(objects["boxes"]):
            one = self._box(box, objects["labels"][number], image)
            if one is None:
                continue
            crowd = bool(objects["crowd"][number]) if "crowd" in objects else False
            one |= {"id": len(self._truth) + 1, "iscrowd": int(crowd)}
            if "mask" in self.kinds:
                one["segmentation"] = _polygon_rle(objects["polygons"][number], image)
                one["area"] = float(_mask_api().area(one["segmentation"]))
            self._truth.append(one)

    def _add_found(self, objects: Mapping[str, Any], image: Mapping[str, Any]) -> None:
        for number, box in enumerate(objects["boxes"]):
            score = float(objects["scores"][number])
            one = self._box(box, objects["labels"][number], image) if score > 0 else None
            if one is None:
                continue
            one["score"] = score
            if "mask" in self.kinds:
                inside = paste(objects["masks"][number], box, image["height"], image["width"])
                one["segmentation"] = _mask_api().encode(np.asfortranarray(inside >= 0.5, "uint8"))
            self._found.append(one)

    def _box(self, box: Any, label: Any, image: Mapping[str, Any]) -> dict[str, Any] | None:
        ymin, xmin, ymax, xmax = (float(each) for each in box)
        if ymax <= ymin or xmax <= xmin:
            return None
        if not 0 <= int(label) < len(self.names):
            raise ValueError(f"Label {int(label)} has no name: CocoMetric knows {self.names}.")
        return {
            "image_id": image["id"],
            "category_id": int(label),
            "bbox": [xmin, ymin, xmax - xmin, ymax - ymin],
            "area": (xmax - xmin) * (ymax - ymin),
        }


def paste(mask: np.ndarray, box: Any, height: int, width: int) -> np.ndarray:
    """A box's mask [m, m] in the whole image: [height, width], bilinear, 0 outside of the box.

    A cell's value is that at its centre, and so is a pixel's; beyond the outermost centres the
    border is repeated.
    """
    ymin, xmin, ymax, xmax = (float(each) for each in box)

    def hats(low: float, high: float, length: int) -> np.ndarray:
        pixels = np.arange(length) + 0.5
        at = (pixels - low) / max(high - low, 1e-6) * len(mask) - 0.5
        at = np.clip(at, 0, len(mask) - 1)
        weights = np.maximum(1 - np.abs(at[:, None] - np.arange(len(mask))), 0)
        return weights * ((pixels > low) & (pixels < high))[:, None]

    return hats(ymin, ymax, height) @ mask @ hats(xmin, xmax, width).T


def _polygon_rle(polygon: np.ndarray, image: Mapping[str, Any]) -> Any:
    corners = [corner for corner, _ in itertools.groupby(np.asarray(polygon).tolist())]
    # pycocotools takes two corners (four numbers) for a box.
    corners += corners[-1:] * max(0, 3 - len(corners))
    flat = [float(value) for y, x in corners for value in (x, y)]
    return _mask_api().frPyObjects([flat], image["height"], image["width"])[0]


def _mask_api() -> Any:
    import pycocotools.mask

    return pycocotools.mask


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """pycocotools prints its progress and its table."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
