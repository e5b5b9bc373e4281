"""The `penguins_palmer` builder: all penguins, with their missing values."""

import importlib.metadata

import numpy as np
import pytest
import tensorflow_datasets as tfds

import tfloss.datasets.penguins
from tfloss.datasets.penguins import PenguinsPalmer


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    tfds.disable_progress_bar()
    loaded = tfds.load("penguins_palmer", data_dir=tmp_path_factory.mktemp("tfds"))
    return {name: list(data.as_numpy_iterator()) for name, data in loaded.items()}


def test_344_penguins_and_their_missing_values(splits):
    assert {name: len(each) for name, each in splits.items()} == {"train": 275, "test": 69}
    every = [one for each in splits.values() for one in each]
    np.testing.assert_array_equal(np.bincount([p["species"] for p in every]), [152, 68, 124])
    np.testing.assert_array_equal(np.bincount([p["sex"] + 1 for p in every]), [11, 165, 168])
    assert sum(np.isnan(p["mass"]) for p in every) == 2
    assert sum(np.isnan(p["measurements"]).all() for p in every) == 2
    np.testing.assert_array_equal(np.isnan([p["isotopes"] for p in every]).sum(0), [14, 13])


def test_the_first_penguins_of_the_table():
    rows = tfloss.datasets.penguins._rows()
    first, second = (tfloss.datasets.penguins._example(row) for row in rows[:2])
    np.testing.assert_allclose(first["measurements"], [39.1, 18.7, 181.0], rtol=1e-6)
    assert (first["species"], first["island"], first["sex"]) == ("Adelie", "Torgersen", 1)
    assert first["mass"] == 3750 and np.isnan(first["isotopes"]).all()
    np.testing.assert_allclose(second["isotopes"], [8.94956, -24.69454], rtol=1e-6)


def test_both_splits_have_every_species_in_proportion(splits):
    for each in splits.values():
        part = np.bincount([p["species"] for p in each]) / len(each)
        np.testing.assert_allclose(part, np.array([152, 68, 124]) / 344, atol=0.01)


def test_without_the_package_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ImportError, match=r"palmerpenguins.*pip install 'tfloss\[examples\]'"):
        PenguinsPalmer(data_dir=tmp_path).download_and_prepare()
