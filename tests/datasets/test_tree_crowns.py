"""The `tree_crowns` builder, on a stand-in of the package whose files it reads."""

import importlib.metadata
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tfloss.datasets.tree_crowns import SOURCES, TreeCrowns, inside

BOX = """<object><name>Tree</name><bndbox><xmin>{1}</xmin><ymin>{0}</ymin><xmax>{3}</xmax>
<ymax>{2}</ymax></bndbox></object>"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A folder that looks like an installed deepforest: 256 x 192 pixels and four crowns."""
    data = tmp_path / "site" / "deepforest" / "data"
    data.mkdir(parents=True)
    info = tmp_path / "site" / "deepforest-2.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: deepforest\nVersion: 2.1.0\n")
    image = np.zeros([192, 256, 3], np.uint8)
    image[:, 128:] = 200
    crowns = [(10, 10, 30, 50), (100, 20, 140, 40), (0, 120, 20, 140), (130, 200, 150, 240)]
    text = "<annotation>" + "".join(BOX.format(*crown) for crown in crowns) + "</annotation>"
    for name, _ in SOURCES.values():
        (data / f"{name}.png").write_bytes(tf.io.encode_png(image).numpy())
        (data / f"{name}.xml").write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "site")
    importlib.invalidate_caches()
    return tmp_path


def test_tiles_and_their_crowns(package):
    tfds.disable_progress_bar()
    builder = TreeCrowns(data_dir=package / "tfds")
    builder.download_and_prepare()
    train, test = (
        sorted(builder.as_dataset(split=s).as_numpy_iterator(), key=lambda e: e["image/id"])
        for s in ("train", "test")
    )
    assert (len(train), len(test)) == (2 * 3, 1 * 2)
    ids = [one["image/id"] for one in train + test]
    assert len(set(ids)) == len(ids)
    left, right = test
    assert not left["image"].any() and (right["image"] == 200).all()
    # Of the second, 28 of 40 rows lie in the tile; of the third, 8 of 20 columns.
    expected = [[10, 10, 30, 50], [100, 20, 128, 40], [0, 120, 20, 128]]
    np.testing.assert_allclose(left["objects"]["bbox"] * 128, expected, atol=1e-4)
    np.testing.assert_array_equal(left["objects"]["area"], [800, 560, 160])
    np.testing.assert_allclose(right["objects"]["bbox"] * 128, [[0, 0, 20, 12]], atol=1e-4)
    assert "deepforest" not in sys.modules


def test_a_crown_with_less_than_two_fifths_in_a_tile_is_left_out():
    crown = np.array([[0.0, 118.0, 10.0, 143.0]])
    np.testing.assert_array_equal(inside(crown, 0, 0), [[0, 118, 10, 128]])
    assert len(inside(crown + [0, 1, 0, 1], 0, 0)) == 0
    assert len(inside(crown, 300, 0)) == 0


def test_without_the_files_the_error_says_how_to_get_them(tmp_path, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ImportError, match="--no-deps --target build/deepforest deepforest==2.1.0"):
        TreeCrowns(data_dir=tmp_path).download_and_prepare()
