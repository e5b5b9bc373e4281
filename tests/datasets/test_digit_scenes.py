"""The `digit_scenes` builder: boxes, polygons and maps agree, and splits are disjoint."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

import tfloss.datasets.digit_scenes
from tfloss.datasets.digit_scenes import DigitScenes, outline, silhouette
from tfloss.detection.masks import rasterize

WHOLE = np.array([0.0, 0.0, 64.0, 64.0], np.float32)


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    path: Path = tmp_path_factory.mktemp("tfds")
    tfds.disable_progress_bar()
    loaded = tfds.load("digit_scenes", data_dir=path)
    return {name: list(data.as_numpy_iterator()) for name, data in loaded.items()}


def test_the_splits_are_1000_and_200_scenes_with_1_to_5_digits(splits):
    assert {name: len(scenes) for name, scenes in splits.items()} == {"train": 1000, "test": 200}
    ids = [scene["image/id"] for scenes in splits.values() for scene in scenes]
    assert sorted(ids) == list(range(1200))
    for scenes in splits.values():
        numbers = np.array([len(scene["objects"]["label"]) for scene in scenes])
        assert set(numbers) == {1, 2, 3, 4, 5}
        labels = np.concatenate([scene["objects"]["label"] for scene in scenes])
        assert np.bincount(labels, minlength=10).min() > 0.07 * len(labels)


def test_boxes_polygons_areas_and_maps_agree_to_the_pixel(splits):
    for scene in splits["test"][:60] + splits["train"][:60]:
        objects, instances = scene["objects"], scene["instances"][..., 0]
        assert instances.max() == len(objects["label"])
        for number, (box, area, polygon) in enumerate(
            zip(objects["bbox"], objects["area"], objects["polygon"], strict=True)
        ):
            mask = instances == number + 1
            assert mask.sum() == area > 30
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            edges = [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]
            np.testing.assert_allclose(box * 64, edges, atol=1e-4)
            np.testing.assert_array_equal(rasterize(polygon * 64, WHOLE, 64), mask)


def test_digits_are_bright_and_the_background_is_not(splits):
    for scene in splits["train"][:60]:
        image, inside = scene["image"][..., 0] / 255, scene["instances"][..., 0] > 0
        assert image[inside].mean() > 0.4
        assert image[~inside].max() <= 0.3


def test_no_digit_is_in_both_splits(tmp_path, monkeypatch):
    images, labels = tfloss.datasets.digits.load_sklearn()
    train, test = tfloss.datasets.digits.split_indices(labels)
    marked = np.full_like(images, np.nan)  # a digit of neither split would show as NaN
    marked[train], marked[test] = 0.5, 1.0
    monkeypatch.setattr(tfloss.datasets.digit_scenes, "load_sklearn", lambda: (marked, labels))
    generators = DigitScenes(data_dir=tmp_path)._split_generators(None)
    for split, brightness in (("train", 128), ("test", 255)):
        for _, (_, scene) in zip(range(50), generators[split], strict=False):
            assert scene["image"].max() == brightness


def test_a_silhouette_by_hand():
    mask = np.array([[0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
    left, right = silhouette(mask)
    np.testing.assert_array_equal(left, [0, 1, 0, 0, 0])
    np.testing.assert_array_equal(right, [0, 4, 3, 1, 0])  # the empty row lies between 4 and 1
    corners = outline(left, right)
    assert corners.shape == (64, 2)
    np.testing.assert_array_equal(
        corners[:10],
        [
            [1, 1], [1.5, 1], [2.5, 0], [3.5, 0], [4, 0],
            [4, 1], [3.5, 1], [2.5, 3], [1.5, 4], [1, 4],
        ],
    )  # fmt: skip
