"""The TFDS builder `penguins_palmer`: 344 penguins with missing measurements. Host code.

    import tensorflow_datasets as tfds
    import tfloss.datasets.penguins  # registers the name "penguins_palmer"

    train, test = tfds.load("penguins_palmer", split=["train", "test"], data_dir="data")

The table is a file of the PyPI package palmerpenguins. So preparing the data set takes
`pip install 'tfloss[examples]'`. (TFDS's own `penguins` downloads a table without sexes and
isotopes.)
"""

import csv
import importlib.metadata
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from tfloss.datasets.digits import split_indices

SPECIES = ("Adelie", "Chinstrap", "Gentoo")
SEXES = ("FEMALE", "MALE")
ISLANDS = ("Biscoe", "Dream", "Torgersen")
MEASURED = ("Culmen Length (mm)", "Culmen Depth (mm)", "Flipper Length (mm)")
ISOTOPES = ("Delta 15 N (o/oo)", "Delta 13 C (o/oo)")
_FILE = "palmerpenguins/data/penguins-raw.csv"


class PenguinsPalmer(tfds.core.GeneratorBasedBuilder):
    """Penguins of the Palmer archipelago: 275 for training and 69 for testing.

    An example is `{"measurements": float32 [3], culmen length, culmen depth, flipper length in mm;
    "island": int64; "species": int64; "sex": int64, -1 if unknown; "mass": float32 in g;
    "isotopes": float32 [2], delta 15 N and delta 13 C in per mille}`. Missing values are NaN.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        return self.dataset_info_from_configs(
            description="344 penguins; not measured: sex 11, mass and sizes 2, isotopes 14 and 13.",
            features=features.FeaturesDict(
                {
                    "measurements": features.Tensor(shape=(3,), dtype=np.float32),
                    "island": features.ClassLabel(names=ISLANDS),
                    "species": features.ClassLabel(names=SPECIES),
                    "sex": np.int64,
                    "mass": np.float32,
                    "isotopes": features.Tensor(shape=(2,), dtype=np.float32),
                }
            ),
            homepage="https://allisonhorst.github.io/palmerpenguins/",
            citation=(
                "Gorman, K. B., Williams, T. D. and Fraser, W. R. (2014). Ecological sexual "
                "dimorphism and environmental variability within a community of Antarctic penguins "
                "(genus Pygoscelis). PLoS ONE 9(3): e90081."
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        penguins = [_example(row) for row in _rows()]
        train, test = split_indices(np.array([one["species"] for one in penguins]))
        return {
            "train": self._generate_examples(penguins, train),
            "test": self._generate_examples(penguins, test),
        }

    def _generate_examples(
        self, penguins: list[dict[str, Any]], indices: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in indices.tolist():
            yield index, penguins[index]


def _rows() -> list[dict[str, str]]:
    try:
        path = importlib.metadata.distribution("palmerpenguins").locate_file(_FILE)
        with open(str(path), newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (importlib.metadata.PackageNotFoundError, FileNotFoundError) as error:
        raise ImportError(
            f"The table of the data set 'penguins_palmer' is the file {_FILE} of the package "
            "palmerpenguins, which is not installed. Install it with: "
            "pip install 'tfloss[examples]'"
        ) from error


def _example(row: dict[str, str]) -> dict[str, Any]:
    sex = row["Sex"]
    return {
        "measurements": np.array([_number(row[name]) for name in MEASURED], np.float32),
        "island": row["Island"],
        "species": row["Species"].split()[0],
        "sex": SEXES.index(sex) if sex in SEXES else -1,
        "mass": _number(row["Body Mass (g)"]),
        "isotopes": np.array([_number(row[name]) for name in ISOTOPES], np.float32),
    }


def _number(text: str) -> float:
    return math.nan if text == "NA" else float(text)
