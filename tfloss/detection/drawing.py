"""Draws boxes and masks into images with Pillow.

    tfloss.summary.draw("detections", drawing.draw_boxes, image[:4], boxes[:4], scores[:4])

Host code, for `tfloss.summary.draw` and for notebooks. Needs `pip install 'tfloss[detection]'`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfloss.detection.coco import paste_mask

# Colors that can be told apart on dark and on bright ground (Wong 2011, Nature Methods 8, 441).
COLORS = ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2")
_MIN_SIDE = 256  # smaller images are enlarged, so that lines and text can be read
_ROW_SIDE = 84  # of the images in rows
_TEXT_SIZE = 12  # pixels


def draw_boxes(
    images: Any,
    boxes: Any,
    scores: Any = None,
    labels: Any = None,
    masks: Any = None,
    *,
    class_names: Sequence[str] | None = None,
    score_threshold: float = 0.0,
    color: str | None = None,
) -> np.ndarray:
    """Draws boxes, and optionally their scores, class names and masks, into images.

    Runs on the host.

    Args:
      images: Images, [n, h, w, 1 or 3], uint8 or float in [0, 1].
      boxes: Boxes, [n, k, 4], pixels (ymin, xmin, ymax, xmax). Empty boxes are not drawn.
      scores: Scores, [n, k], written beside the boxes, or None.
      labels: Class indices, integers [n, k], or None. Each class has its own color.
      masks: Probabilities within the boxes, [n, k, m, m], or None.
      class_names: Class names, in label order, written beside the boxes.
      score_threshold: Boxes with a score at or below this are not drawn.
      color: Color of all boxes, such as "#E69F00" or "red". Defaults to the color of the class.

    Returns:
      Drawn images, uint8 [n, H, W, 3]. Images with sides below 256 are enlarged by an integer
      factor.

    Raises:
      ImportError: Pillow is not installed.
    """
    Image, ImageDraw, ImageFont = _pillow()
    font = ImageFont.load_default(_TEXT_SIZE)
    images = _colored(images)
    zoom = max(1, -(-_MIN_SIDE // max(images.shape[1:3])))
    drawn: list[np.ndarray] = []
    for i, image in enumerate(images):
        enlarged = image.repeat(zoom, 0).repeat(zoom, 1)
        visible: list[tuple[int, Any, int | None, float | None]] = []
        for k, box in enumerate(np.asarray(boxes)[i].tolist()):
            score = None if scores is None else float(scores[i][k])
            filled = box[2] > box[0] and box[3] > box[1]
            if filled and (score is None or score > score_threshold):
                label = None if labels is None else int(labels[i][k])
                visible.append((k, box, label, score))
        if masks is not None:
            for k, box, label, _ in visible:
                enlarged = _tinted(
                    enlarged, masks[i][k], np.multiply(box, zoom), _color(color, label)
                )
        canvas = Image.fromarray(enlarged)
        pen = ImageDraw.Draw(canvas)
        for _, box, label, _ in visible:
            y0, x0, y1, x1 = (round(zoom * side) for side in box)
            ink = _color(color, label)
            pen.rectangle((x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)), outline=ink)
        captions: list[tuple[tuple[int, int, int, int], str, str]] = []
        for _, box, label, score in visible:
            if caption := _caption(label, score, class_names):
                size = int(pen.textlength(caption, font)) + 4, _TEXT_SIZE + 2
                taken = [area for area, _, _ in captions]
                area = _free_place(np.multiply(box, zoom), size, canvas.size, taken)
                captions.append((area, caption, _color(color, label)))
        for area, caption, ground in reversed(captions):  # the best one comes last, and on top
            pen.rectangle(area, fill=ground)
            pen.text((area[0] + 2, area[1]), caption, fill=_ink_on(ground), font=font)
        drawn.append(np.asarray(canvas))
    return np.stack(drawn)


def draw_predictions(
    batch: Mapping[str, Any],
    predictions: Mapping[str, Any],
    *,
    class_names: Sequence[str] | None = None,
    score_threshold: float = 0.3,
    max_images: int = 4,
) -> np.ndarray:
    """Draws what a detector found in the first images of a batch. Runs on the host.

        draw = functools.partial(drawing.draw_predictions, class_names=names)
        tfloss.hooks.LogPredictions("val/found", val_set, draw, every=every)

    Args:
      batch: A batch with `"image"`, see `CocoMetric`.
      predictions: Its predictions, see `CocoMetric`, with or without masks.
      class_names: See `draw_boxes`.
      score_threshold: See `draw_boxes`.
      max_images: The number of images, at most.

    Returns:
      See `draw_boxes`.

    Raises:
      ImportError: Pillow is not installed.
    """
    found = {
        name: predictions[name][:max_images]
        for name in ("boxes", "scores", "labels", "masks")
        if name in predictions
    }
    images = batch["image"][:max_images]
    return draw_boxes(images, **found, class_names=class_names, score_threshold=score_threshold)


def draw_rows(names: Sequence[str], *rows: Any) -> np.ndarray:
    """Draws rows of images below each other, with the name of the row on the left.

        draw = functools.partial(drawing.draw_rows, ("image", "reconstruction"))
        tfloss.summary.draw("pairs", draw, image[:8], found[:8])

    Runs on the host.

    Args:
      names: Name of each row.
      *rows: Images of each row, [n, h, w, 1 or 3], uint8 or float in [0, 1]; all of one shape.

    Returns:
      One drawn image, uint8 [1, H, W, 3]. Images with sides below 84 are enlarged by an integer
      factor.

    Raises:
      ImportError: Pillow is not installed.
    """
    Image, ImageDraw, ImageFont = _pillow()
    font = ImageFont.load_default(_TEXT_SIZE)
    images = np.stack([_colored(row) for row in rows])  # [rows, n, h, w, 3]
    zoom = max(1, -(-_ROW_SIDE // max(images.shape[2:4])))
    images = images.repeat(zoom, 2).repeat(zoom, 3)
    count, columns, height, width = images.shape[:4]
    left = 12 + max(int(font.getlength(name)) for name in names)
    size = (left + columns * (width + 4), count * (height + 4))
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    for row, name in enumerate(names):
        top = row * (height + 4)
        pen.text((4, top + height // 2), name, fill="black", font=font, anchor="lm")
        for column in range(columns):
            place = (left + column * (width + 4), top)
            canvas.paste(Image.fromarray(images[row, column]), place)
    return np.asarray(canvas)[np.newaxis]


def _pillow() -> tuple[Any, Any, Any]:
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise ImportError(
            "Drawing needs Pillow. Install it with: pip install 'tfloss[detection]'"
        ) from error
    return Image, ImageDraw, ImageFont


def _colored(images: Any) -> np.ndarray:
    """Images as uint8 [..., 3]."""
    images = np.asarray(images)
    if images.dtype != np.uint8:
        images = np.round(255 * np.clip(images, 0, 1)).astype(np.uint8)
    return np.repeat(images, 3, -1) if images.shape[-1] == 1 else images


def _ink_on(color: str) -> str:
    """Black or white, whichever can be read on a color."""
    from PIL import ImageColor

    red, green, blue = ImageColor.getrgb(color)[:3]
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else "white"


def _free_place(
    box: Any, size: tuple[int, int], canvas: tuple[int, int], taken: list[tuple[int, int, int, int]]
) -> tuple[int, int, int, int]:
    """Returns where to write a caption of a box: left, top, right, bottom.

    The places are above the box, inside of it at the top, inside at the bottom, and below it, each
    on the left and on the right. The first one that covers no other caption is chosen.
    """
    width, height = size
    y0, x0, y1, x1 = (round(side) for side in box)
    found: list[tuple[int, int, int, int]] = []
    for top in (y0 - height - 1, y0, y1 - height - 1, y1):
        for left in (x0, x1 - width - 1):
            left = max(min(left, canvas[0] - width - 1), 0)
            top = max(min(top, canvas[1] - height - 1), 0)
            found.append((left, top, left + width, top + height))
    free = (a for a in found if not any(_overlap(a, other) for other in taken))
    return next(free, found[0])


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def _caption(label: int | None, score: float | None, class_names: Sequence[str] | None) -> str:
    name = "" if label is None or class_names is None else str(class_names[label])
    return f"{name} {score:.2f}".strip() if score is not None else name


def _color(given: str | None, label: int | None) -> str:
    return given or COLORS[(label or 0) % len(COLORS)]


def _tinted(image: np.ndarray, mask: Any, box: Any, color: str) -> np.ndarray:
    from PIL import ImageColor

    inside = paste_mask(np.asarray(mask), box, *image.shape[:2]) >= 0.5
    tint = np.array(ImageColor.getrgb(color)[:3])
    mixed = np.where(inside[..., None], 0.5 * image + 0.5 * tint, image)
    return np.round(mixed).astype(np.uint8)
