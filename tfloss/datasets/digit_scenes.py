"""The TFDS builder `digit_scenes`: scenes composed of handwritten digits. Host code.

    import tensorflow_datasets as tfds
    import tfloss.datasets.digit_scenes  # registers the name "digit_scenes"

    train, test = tfds.load("digit_scenes", split=["train", "test"], data_dir="data")

The digits are those of `tfloss.datasets.digits`, so preparing the data set takes
`pip install 'tfloss[examples]'`. An example has the structure of TFDS's `coco`, with a polygon
for each object and an instance map in addition.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from tfloss.datasets.digits import load_sklearn, split_indices

SIDE = 64  # pixels of a scene
POINTS = 64  # corners of a polygon; the last one is repeated as padding
SCENES = {"train": 1_000, "test": 200}


class DigitScenes(tfds.core.GeneratorBasedBuilder):
    """Scenes of 64x64 pixels with 1 to 5 digits of 16 to 24 pixels, which don't overlap.

    No digit of a test scene is in a training scene. The mask of an object is its silhouette: in
    each row, the pixels from the leftmost to the rightmost one that is brighter than 0.25.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        return self.dataset_info_from_configs(
            description=(
                "Composed scenes of real handwritten digits, with boxes, polygons and masks. "
                "instances holds 1 + the number of the object that a pixel belongs to, or 0; a "
                "polygon's corners are (y, x) as fractions of the image, as boxes are."
            ),
            features=features.FeaturesDict(
                {
                    "image": features.Image(shape=(SIDE, SIDE, 1), encoding_format="png"),
                    "image/id": np.int64,
                    "instances": features.Image(shape=(SIDE, SIDE, 1), encoding_format="png"),
                    "objects": features.Sequence(
                        {
                            "id": np.int64,
                            "bbox": features.BBoxFeature(),
                            "label": features.ClassLabel(num_classes=10),
                            "area": np.int64,
                            "is_crowd": np.bool_,
                            "polygon": features.Tensor(shape=(POINTS, 2), dtype=np.float32),
                        }
                    ),
                }
            ),
            homepage="https://archive.ics.uci.edu/dataset/80",
            citation=(
                "Alpaydin, E. and Kaynak, C. (1998). Optical Recognition of Handwritten Digits. "
                "UCI Machine Learning Repository."
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        images, labels = load_sklearn()
        train, test = split_indices(labels)
        return {
            "train": self._generate_examples(images[train], labels[train], "train"),
            "test": self._generate_examples(images[test], labels[test], "test"),
        }

    def _generate_examples(
        self, digits: np.ndarray, labels: np.ndarray, split: str
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        random = np.random.RandomState(0 if split == "train" else 1)
        first = 0 if split == "train" else SCENES["train"]
        for number in range(first, first + SCENES[split]):
            yield number, _scene(digits[..., 0], labels, random, number)


def _scene(digits: np.ndarray, labels: np.ndarray, random: Any, number: int) -> dict[str, Any]:
    image = 0.1 * random.rand(SIDE, SIDE)
    instances = np.zeros([SIDE, SIDE], np.uint8)
    objects: list[dict[str, Any]] = []
    for _ in range(random.randint(1, 6)):
        which, size = random.randint(len(digits)), random.randint(16, 25)
        digit = _enlarged(digits[which], size)
        left, right = silhouette(digit > 0.25)
        for _ in range(30):  # tries to find a free place; if none is found, the digit is dropped
            y, x = random.randint(0, SIDE - size + 1, 2)
            if not instances[y : y + size, x : x + size].any():
                break
        else:
            continue
        image[y : y + size, x : x + size] = np.maximum(image[y : y + size, x : x + size], digit)
        inside = (np.arange(size) >= left[:, None]) & (np.arange(size) < right[:, None])
        instances[y : y + size, x : x + size][inside] = len(objects) + 1
        corners = outline(left, right) + (y, x)
        low, high = corners.min(0) / SIDE, corners.max(0) / SIDE
        objects.append(
            {
                "id": 10 * number + len(objects),
                "bbox": tfds.features.BBox(low[0], low[1], high[0], high[1]),
                "label": int(labels[which]),
                "area": int(inside.sum()),
                "is_crowd": False,
                "polygon": (corners / SIDE).astype(np.float32),
            }
        )
    return {
        "image": np.round(255 * image).astype(np.uint8)[..., np.newaxis],
        "image/id": number,
        "instances": instances[..., np.newaxis],
        "objects": objects,
    }


def silhouette(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns where each row of a mask begins and ends.

    Rows without pixels are interpolated between others; above and below the mask they are empty.

    Args:
      mask: Bool [size, size].

    Returns:
      The first column and the column after the last one in each row, int [size] each.
    """
    rows = np.flatnonzero(mask.any(1))
    every = np.arange(len(mask))
    left = np.interp(every, rows, mask[rows].argmax(1))
    right = np.interp(every, rows, mask.shape[1] - mask[rows, ::-1].argmax(1))
    outside = (every < rows[0]) | (every > rows[-1])
    left, right = np.where(outside, 0, left), np.where(outside, 0, right)
    return np.floor(left).astype(int), np.ceil(right).astype(int)


def outline(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns the polygon of a silhouette: down its left side and up its right side.

    It has a corner in the middle of each row. So it contains the centres of exactly the
    silhouette's pixels. It ends at the borders of the first and the last row.

    Args:
      left: First column in each row, int [size].
      right: Column after the last one in each row, int [size].

    Returns:
      Corners (y, x) in pixels, [POINTS, 2].
    """
    rows = np.flatnonzero(right > left)
    y = np.concatenate([[rows[0]], rows + 0.5, [rows[-1] + 1]])
    ends = np.concatenate([rows[:1], rows, rows[-1:]])
    down = np.stack([y, left[ends]], 1)
    up = np.stack([y, right[ends]], 1)[::-1]
    corners = np.concatenate([down, up])
    return np.concatenate([corners, np.repeat(corners[-1:], POINTS - len(corners), 0)])


def _enlarged(digit: np.ndarray, size: int) -> np.ndarray:
    """Resizes an 8x8 image to [size, size], bilinearly between the centres of pixels."""
    at = np.clip((np.arange(size) + 0.5) * len(digit) / size - 0.5, 0, len(digit) - 1)
    hats = np.maximum(1 - np.abs(at[:, None] - np.arange(len(digit))), 0)
    return hats @ digit @ hats.T
