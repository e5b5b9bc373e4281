"""The TFDS builder `digits`: 1,797 real handwritten digits, without a download.

    import tensorflow_datasets as tfds
    import tfloss.datasets.digits  # registers the name "digits"

    train, test = tfds.load("digits", split=["train", "test"], data_dir="data")

The pictures come out of scikit-learn's wheel, so the machine that prepares them needs
`pip install 'tfloss[examples]'`; one that reads prepared ones doesn't.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

TEST_EVERY = 5  # one image in five is held out: 360 of 1,797


class Digits(tfds.core.GeneratorBasedBuilder):
    """8x8 grey images of handwritten digits, 1,437 to train on and 360 to test on.

    An example is `{"image": float32 [8, 8, 1] in [0, 1], "label": int64 in [0, 10)}`. The
    source has 17 grey levels, 0 to 16. They are stored divided by 16, which is exact in
    float32, because a uint8 image would claim 256 levels: it would be drawn nearly black,
    and every reader would need the same division before the first layer.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="1,797 handwritten digits of 8x8 pixels, as shipped with scikit-learn.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.float32),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
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
            "train": self._generate_examples(images, labels, train),
            "test": self._generate_examples(images, labels, test),
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray, indices: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in indices.tolist():
            yield index, {"image": images[index], "label": int(labels[index])}


def split_indices(labels: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Which examples are for training and which for testing: the same on every machine.

    Stratified: the shuffled examples are lined up by class and every fifth is for testing,
    so each class gives a fifth of itself, give or take one.

    Args:
      labels: [n] integers.
      seed: of the shuffle.

    Returns:
      (train, test), each sorted, disjoint, together 0 to n-1.
    """
    # RandomState, because NumPy promises never to change its stream; default_rng's may.
    order = np.random.RandomState(seed).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    held_out = np.arange(len(labels)) % TEST_EVERY == 0
    return np.sort(by_class[~held_out]), np.sort(by_class[held_out])


def load_sklearn() -> tuple[np.ndarray, np.ndarray]:
    """All digits: images float32 [1797, 8, 8, 1] in [0, 1], labels int64 [1797]."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "Preparing the data set 'digits' takes its images from scikit-learn, which can't be "
            "imported here. Install it with: pip install 'tfloss[examples]'"
        ) from error
    bunch: Any = load_digits()
    images = (bunch.images / 16).astype(np.float32)[..., np.newaxis]
    return images, bunch.target.astype(np.int64)
