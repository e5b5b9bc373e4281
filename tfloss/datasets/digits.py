"""The TFDS builder `digits`: 1,797 handwritten digits, without a download. Host code.

    import tensorflow_datasets as tfds
    import tfloss.datasets.digits  # registers the name "digits"

    train, test = tfds.load("digits", split=["train", "test"], data_dir="data")

The images are part of scikit-learn's wheel. So preparing the data set takes
`pip install 'tfloss[examples]'`; reading the prepared data set doesn't.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

TEST_EVERY = 5  # one image in five is in the test split: 360 of 1,797


class Digits(tfds.core.GeneratorBasedBuilder):
    """Grey 8x8 images of handwritten digits: 1,437 for training and 360 for testing.

    An example is `{"image": float32 [8, 8, 1] in [0, 1], "label": int64 in [0, 10)}`. The source
    has 17 grey levels, 0 to 16. They are stored divided by 16, which is exact in float32. As uint8,
    images would look nearly black, and every reader would have to divide by 16.
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
    """Returns the indices of the training and of the test examples, the same on every machine.

    The split is stratified: the shuffled examples are sorted by class, and every fifth is for
    testing. So each class has a fifth of its examples in the test split, up to rounding.

    Args:
      labels: Integer labels, [n].
      seed: Seed of the shuffle.

    Returns:
      Indices of the training and of the test examples, each sorted. They are disjoint, and together
      they are 0 to n-1.
    """
    # RandomState: NumPy guarantees that its numbers never change, unlike those of default_rng.
    order = np.random.RandomState(seed).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    held_out = np.arange(len(labels)) % TEST_EVERY == 0
    return np.sort(by_class[~held_out]), np.sort(by_class[held_out])


def load_sklearn() -> tuple[np.ndarray, np.ndarray]:
    """Returns all digits: images, float32 [1797, 8, 8, 1] in [0, 1], and labels, int64 [1797].

    Raises:
      ImportError: scikit-learn isn't installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "The images of the data set 'digits' are part of scikit-learn, which can't be "
            "imported. Install it with: pip install 'tfloss[examples]'"
        ) from error
    bunch: Any = load_digits()
    images = (bunch.images / 16).astype(np.float32)[..., np.newaxis]
    return images, bunch.target.astype(np.int64)
