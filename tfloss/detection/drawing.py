"""Boxes and masks drawn into images, by Pillow.

    tfloss.summary.draw("found", drawing.boxes, image[:4], boxes[:4], scores[:4])

Host code, for `tfloss.summary.draw` and for notebooks. Needs `pip install 'tfloss[detection]'`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfloss.detection.coco import paste

# Colours that are told apart on dark and on bright ground (Wong 2011, Nature Methods 8, 441).
COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2")
_LEAST_SIDE = 256  # smaller images are enlarged, so that lines and words can be read


def boxes(
    images: Any,
    boxes: Any,
    scores: Any = None,
    labels: Any = None,
    masks: Any = None,
    *,
    names: Sequence[str] | None = None,
    least: float = 0.0,
    colour: str | None = None,
) -> np.ndarray:
    """Images with boxes, and where they are given their names, scores and masks.

    Args:
      images: [n, h, w, 1 or 3], uint8 or float in [0, 1].
      boxes: [n, k, 4], pixels (ymin, xmin, ymax, xmax); empty ones are not drawn.
      scores: [n, k]; written, and a box of this score or less is left out (see `least`).
      labels: [n, k] integers: each has its colour, and its name is written if there are `names`.
      masks: [n, k, m, m], probabilities within the box.
      names: of the labels.
      least: boxes with a score at or below this are left out.
      colour: of all boxes, such as "#E69F00" or "red"; by default that of their label.

    Returns:
      uint8 [n, H, W, 3], enlarged by a whole number if an image's sides are below 256.

    Raises:
      ImportError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise ImportError(
            "Drawing needs Pillow. Install it with: pip install 'tfloss[detection]'"
        ) from error
    images = np.asarray(images)
    if images.dtype != np.uint8:
        images = np.round(255 * np.clip(images, 0, 1)).astype(np.uint8)
    if images.shape[-1] == 1:
        images = np.repeat(images, 3, -1)
    zoom = max(1, -(-_LEAST_SIDE // max(images.shape[1:3])))
    drawn = []
    for i, image in enumerate(images):
        big = image.repeat(zoom, 0).repeat(zoom, 1)
        found = []
        for k, box in enumerate(np.asarray(boxes)[i].tolist()):
            score = None if scores is None else float(scores[i][k])
            filled = box[2] > box[0] and box[3] > box[1]
            if filled and (score is None or score > least):
                label = None if labels is None else int(labels[i][k])
                found.append((k, box, label, score))
        if masks is not None:
            for k, box, label, _ in found:
                big = _tinted(big, masks[i][k], np.multiply(box, zoom), _colour(colour, label))
        picture = Image.fromarray(big)
        pen = ImageDraw.Draw(picture)
        for _, box, label, score in found:
            y0, x0, y1, x1 = (round(zoom * side) for side in box)
            ink = _colour(colour, label)
            pen.rectangle((x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)), outline=ink)
            words = _words(label, score, names)
            if words:
                pen.text((x0 + 2, max(y0 - 11, 0)), words, fill=ink)
        drawn.append(np.asarray(picture))
    return np.stack(drawn)


def _words(label: int | None, score: float | None, names: Sequence[str] | None) -> str:
    name = "" if label is None or names is None else str(names[label])
    return f"{name} {score:.2f}".strip() if score is not None else name


def _colour(given: str | None, label: int | None) -> str:
    return given or COLOURS[(label or 0) % len(COLOURS)]


def _tinted(image: np.ndarray, mask: Any, box: Any, colour: str) -> np.ndarray:
    from PIL import ImageColor

    inside = paste(np.asarray(mask), box, *image.shape[:2]) >= 0.5
    tint = np.array(ImageColor.getrgb(colour)[:3])
    mixed = np.where(inside[..., None], 0.5 * image + 0.5 * tint, image)
    return np.round(mixed).astype(np.uint8)
