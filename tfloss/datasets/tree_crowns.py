"""The TFDS builder `tree_crowns`: 853 tree crowns, annotated in two aerial images. Host code.

    import tensorflow_datasets as tfds
    import tfloss.datasets.tree_crowns  # registers the name "tree_crowns"

    train, test = tfds.load("tree_crowns", split=["train", "test"], data_dir="data")

The images are files in the wheel of the PyPI package deepforest, which is not imported. So install
it without its dependencies, in any folder, to prepare the data set:

    pip install --no-deps --target build/deepforest deepforest==2.1.0
    PYTHONPATH=build/deepforest python ...
"""

import importlib.metadata
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

SIDE = 128  # pixels, or 12.8 m, of a tile
MIN_VISIBLE = 0.4  # a crown belongs to a tile that contains at least this fraction of its area
# File and stride in pixels. The two images don't overlap; training tiles overlap by half.
SOURCES = {
    "train": ("2019_YELL_2_528000_4978000_image_crop2", SIDE // 2),
    "test": ("2019_YELL_2_541000_4977000_image_crop", SIDE),
}


class TreeCrowns(tfds.core.GeneratorBasedBuilder):
    """Tiles of 128x128 pixels: 1,258 for training, a third of them empty, and 72 for testing.

    An example has the structure of TFDS's `coco`. Boxes are clipped to their tile.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        return self.dataset_info_from_configs(
            description=(
                "Tree crowns drawn by hand on airborne pictures of the National Ecological "
                "Observatory Network (NEON), 0.1 m a pixel, as shipped with DeepForest."
            ),
            features=features.FeaturesDict(
                {
                    "image": features.Image(shape=(SIDE, SIDE, 3), encoding_format="png"),
                    "image/id": np.int64,
                    "objects": features.Sequence(
                        {
                            "id": np.int64,
                            "bbox": features.BBoxFeature(),
                            "label": features.ClassLabel(names=["tree"]),
                            "area": np.int64,
                            "is_crowd": np.bool_,
                        }
                    ),
                }
            ),
            homepage="https://deepforest.readthedocs.io",
            citation=(
                "Weinstein, B. G. et al. (2021). A benchmark dataset for canopy crown detection "
                "and delineation in co-registered airborne RGB, LiDAR and hyperspectral imagery "
                "from the National Ecological Observatory Network. PLoS Computational Biology "
                "17(7): e1009180."
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        root = _folder()
        return {
            split: self._generate_examples(root / name, stride, first)
            for (split, (name, stride)), first in zip(SOURCES.items(), (0, 100_000), strict=True)
        }

    def _generate_examples(
        self, stem: Path, stride: int, first: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        image = tf.io.decode_png(stem.with_suffix(".png").read_bytes(), channels=3).numpy()
        crowns = _crowns(stem.with_suffix(".xml"))
        height, width = image.shape[:2]
        number = first
        for y in range(0, height - SIDE + 1, stride):
            for x in range(0, width - SIDE + 1, stride):
                objects = [
                    {
                        "id": 1_000 * number + k,
                        "bbox": tfds.features.BBox(*(box / SIDE)),
                        "label": 0,
                        "area": int(np.prod(box[2:] - box[:2])),
                        "is_crowd": False,
                    }
                    for k, box in enumerate(inside(crowns, y, x))
                ]
                tile = image[y : y + SIDE, x : x + SIDE]
                yield number, {"image": tile, "image/id": number, "objects": objects}
                number += 1


def inside(crowns: np.ndarray, y: int, x: int) -> np.ndarray:
    """Returns the crowns of one tile, clipped to it; see `MIN_VISIBLE`.

    Args:
      crowns: Boxes (ymin, xmin, ymax, xmax) in pixels of the image, [n, 4].
      y: First row of the tile.
      x: First column of the tile.

    Returns:
      Boxes in pixels of the tile, [k, 4].
    """
    moved = crowns - [y, x, y, x]
    cut = np.clip(moved, 0, SIDE)
    area, visible = (np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (moved, cut))
    return cut[visible >= MIN_VISIBLE * area]


def _crowns(path: Path) -> np.ndarray:
    """Returns the boxes (ymin, xmin, ymax, xmax) of a Pascal VOC file in pixels, [n, 4]."""
    boxes = [
        [float(box.findtext(side, "nan")) for side in ("ymin", "xmin", "ymax", "xmax")]
        for box in ElementTree.parse(path).iter("bndbox")
    ]
    return np.array(boxes).reshape(-1, 4)


def _folder() -> Path:
    try:
        found = importlib.metadata.distribution("deepforest").locate_file("deepforest/data")
    except importlib.metadata.PackageNotFoundError:
        found = None
    if found is None or not Path(str(found)).is_dir():
        raise ImportError(
            "The images of the data set 'tree_crowns' are files of the package deepforest, which "
            "are not on Python's path. Install them without the package's dependencies: "
            "pip install --no-deps --target build/deepforest deepforest==2.1.0; "
            "then run this command again with PYTHONPATH=build/deepforest."
        )
    return Path(str(found))
